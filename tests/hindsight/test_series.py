"""The norms of a run, put together from its records: no step twice, none lost, each at its step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradguard.hindsight.series import Piece, join, outline, series_by_optimizer


def piece(step, norms, every=1):
    return Piece(step, np.array(norms, dtype=np.float32), every)


def test_steps_are_counted_back_from_each_record():
    series = join([piece(0, [1.0]), piece(3, [2.0, 3.0, 4.0]), piece(4, [math.nan])])
    assert series.steps.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(series.norms, np.array([1, 2, 3, 4, math.nan], np.float32), equal_nan=True)


def test_the_steps_of_a_critic_lie_as_far_apart_as_its_records_say():
    assert join([piece(4, [1.0]), piece(19, [2.0, 3.0, 4.0])]).steps.tolist() == [4, 9, 14, 19]


def test_what_was_written_of_an_attempt_that_was_given_up_goes():
    first, second = piece(49, range(50)), piece(99, range(50, 100))
    lost, again = piece(149, [7.0] * 50), piece(99, range(50, 100))
    assert join([first, second, lost, again]).norms.tolist() == list(range(100))


def test_a_bad_step_of_the_same_batch_is_no_new_attempt():
    assert len(join([piece(9, range(10)), piece(9, [math.nan])])) == 11


def test_optimizers_are_kept_apart_and_what_is_not_known_is_counted(make_record):
    records = [make_record(3, optimizer=i, num_steps=4, total_norms=(1.0,) * 4) for i in (0, 1)]
    records.append(make_record(9, optimizer=1, num_steps=6))
    found = series_by_optimizer(records)
    assert {i: (len(s), s.unknown) for i, s in found.items()} == {0: (4, 0), 1: (4, 6)}
    assert series_by_optimizer([replace(records[0], steps_per_norm=2)])[0].steps_per_norm == 2


@pytest.mark.parametrize("num_norms", [10, 5000])
def test_the_outline_has_few_points_and_every_peak(num_norms):
    norms = np.ones(num_norms)
    norms[num_norms // 2], norms[3] = 9.0, math.inf
    series = join([piece(num_norms - 1, norms)])
    shown = outline(series, places=100)
    steps, heights = series.steps[shown], series.norms[shown]
    assert len(steps) <= 200
    assert heights.max() == 9.0 and steps[heights.argmax()] == num_norms // 2
    assert np.isfinite(heights).all()
    assert (np.diff(steps) >= 0).all()
