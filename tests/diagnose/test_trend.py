"""Whether the loss falls."""

import math

import pytest

from lightning_gradguard.diagnose.trend import LossTrend


def trend(losses, make_record):
    found = LossTrend()
    for step, loss in enumerate(losses):
        found.add(make_record(step, loss=loss))
    return found


@pytest.mark.parametrize(
    ("losses", "falling"),
    [
        ([2.0 * 0.9**i for i in range(20)], True),
        ([2.0] * 20, False),
        ([2.0 + 0.1 * i for i in range(20)], False),
        ([2.0 * 0.7**i for i in range(10)] + [0.05] * 20, False),
        ([2.0, 1.0], True),
        ([2.0], False),
        ([], False),
        ([None, math.nan, 2.0, math.inf], False),
        ([-1.0 - 0.1 * i for i in range(20)], True),
    ],
)
def test_falling_speaks_of_the_last_records(losses, falling, make_record):
    assert trend(losses, make_record).is_falling is falling


def test_the_fall_is_a_share_of_the_first_losses(make_record):
    assert trend([5.0, 4.0, 3.0, 1.0, 1.0, 1.0, 1.0], make_record).fell == pytest.approx(0.75)
    assert trend([], make_record).fell is None
