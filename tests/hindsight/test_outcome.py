"""One row: shares, coefficients, and how long a policy takes to follow a lasting rise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradguard import AutoClip, NormClip, ZClip
from lightning_gradguard.hindsight.outcome import find_rise, outcome_of, share_above, thresholds
from lightning_gradguard.hindsight.series import Piece, join
from lightning_gradguard.hindsight.trial import try_policy


def series(norms):
    return join([Piece(len(norms) - 1, np.array(norms, dtype=np.float32))])


def test_the_first_steps_do_not_count_for_shares_and_do_for_extremes():
    norms = [100.0] * 5 + [1.0] * 90 + [2.0, 3.0, 4.0, 5.0, math.nan]
    outcome = outcome_of(NormClip(1.5), series(norms), find_rise(series(norms)))
    assert outcome.clipped == pytest.approx(4 / 94)
    assert outcome.median == pytest.approx((1.5 / 3 + 1.5 / 4) / 2, rel=1e-5)
    assert outcome.smallest == pytest.approx(0.015, rel=1e-5)
    assert outcome.largest == pytest.approx(1.5, rel=1e-5)
    assert outcome.hardest == (0, 1, 2, 3, 4, 98, 97, 96, 95)


def test_a_policy_that_clips_nothing_says_so():
    outcome = outcome_of(NormClip(9.0), series([1.0] * 100), find_rise(series([1.0] * 100)))
    assert (outcome.clipped, outcome.median, outcome.smallest, outcome.hardest) == (0.0, 1.0, 1.0, ())
    assert outcome.largest == 1.0


@pytest.mark.parametrize("at", [100, 137])
def test_a_lasting_rise_of_the_run_is_found_where_it_is(at):
    noise = np.random.default_rng(at).uniform(0.8, 1.2, 300)
    noise[at:] *= 10.0
    noise[60] = 50.0  # a spike is no rise
    rise = find_rise(series(noise))
    assert rise.step == at
    assert rise.factor == pytest.approx(10.0, rel=0.2)


def test_a_rise_is_imagined_where_the_run_has_none():
    rise = find_rise(series([1.0] * 200))
    assert (rise.step, rise.index, rise.factor) == (None, 200, 3.0)


def test_a_ceiling_never_recovers_and_an_adaptive_policy_does():
    noise = np.random.default_rng(0).uniform(0.8, 1.2, 400)
    found = {
        type(p).__name__: outcome_of(p, series(noise), find_rise(series(noise)))
        for p in (NormClip(1.0), ZClip(), AutoClip())
    }
    assert found["NormClip"].recovers is None
    assert 0 < found["ZClip"].recovers < 30
    assert 50 < found["AutoClip"].recovers <= 100  # most of its window


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.5])
def test_a_ceiling_of_the_list_clips_the_share_it_names(share):
    norms = np.random.default_rng(1).lognormal(0.0, 1.0, 2000).astype(np.float32)
    trial = try_policy(NormClip(thresholds(norms)[share]), norms)
    assert trial.clipped[100:].mean() == pytest.approx(share, abs=1 / 1900)


def test_a_share_of_less_than_a_step_is_the_largest_norm():
    assert thresholds(np.arange(1.0, 101.0, dtype=np.float32))[0.001] == 100.0
    assert share_above(np.arange(1.0, 101.0, dtype=np.float32), 90.0) == pytest.approx(10 / 95)
    assert thresholds(np.array([3.0], dtype=np.float32))[0.5] == 3.0
