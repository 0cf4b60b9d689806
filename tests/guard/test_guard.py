import math

import pytest
import torch

from lightning_gradguard.guard.damage import inspect
from lightning_gradguard.guard.guard import Guard
from tests.measurement.test_measurement import measured


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"action": "ignore"}, ValueError, "action must be one of 'skip', 'rollback', 'stop', 'raise', got 'ignore'"),
        ({"patience": 0}, ValueError, "patience must be at least 1 bad step in a row, got 0"),
        ({"patience": 2.0}, TypeError, "patience must be an int, got float: 2.0"),
        ({"patience": True}, TypeError, "patience must be an int, got bool: True"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_with_what_was_got(arguments, error, message):
    with pytest.raises(error, match=message):
        Guard(**arguments)


def test_patience_counts_bad_steps_in_a_row():
    guard = Guard("skip", patience=3)
    assert [guard.bad_step(), guard.bad_step()] == [False, False]
    guard.good_step()
    assert [guard.bad_step(), guard.bad_step(), guard.bad_step()] == [False, False, True]


def test_damage_is_counted_and_put_in_words():
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    damage = inspect(measured(torch.ones(2), bad, torch.tensor([math.inf])))
    assert damage is not None
    assert damage.names == ("p1", "p2")
    assert (damage.nan, damage.inf) == ({"p1": 1, "p2": 0}, {"p1": 2, "p2": 1})
    assert damage.cause == "nan"
    assert damage.describe() == "'p1' (1 NaN, 2 Inf), 'p2' (1 Inf); 2 of 3 parameters are affected"


def test_damage_everywhere_points_at_the_loss():
    damage = inspect(measured(*[torch.tensor([math.nan])] * 7))
    assert damage is not None
    assert "and 2 more; every parameter is affected, which points at the loss" in damage.describe()


def test_a_norm_that_overflowed_over_finite_elements_is_no_damage():
    assert inspect(measured(torch.full((10,), 1e30))) is None
