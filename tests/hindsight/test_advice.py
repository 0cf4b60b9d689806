"""Which clip a run asks for: each kind from norms that have it, and none from norms that do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradguard.hindsight.advice import advise
from lightning_gradguard.hindsight.notation import read_policy
from lightning_gradguard.hindsight.series import Piece, join

RANDOM = np.random.default_rng(0)
CALM = RANDOM.lognormal(0.0, 0.3, 600)


def series(norms):
    return join([Piece(len(norms) - 1, np.array(norms, dtype=np.float32))])


def changed(where, by):
    norms = CALM.copy()
    norms[where] *= by
    return norms


RUNS = {
    "calm": (CALM, "none"),
    "calm, falling by a thousand": (CALM * np.geomspace(10.0, 0.01, 600), "none"),
    "calm, first steps large": (changed(slice(0, 5), 30.0), "none"),
    "falling, and noisy where it is small": (np.r_[CALM[:300] * 5, RANDOM.lognormal(-3, 1.5, 300)], "none"),
    "rising slowly": (CALM * np.geomspace(0.1, 10.0, 600), "none"),
    "some steps not finite": (changed([200, 400], math.nan), "none"),
    "rare spikes": (changed([100, 300, 301, 500], 50.0), "spikes"),
    "rare spikes on a falling level": (changed([100, 300], 500.0) * np.geomspace(10.0, 0.1, 600), "spikes"),
    "a spike it does not come back from": (np.r_[CALM[:80], 40.0, 300.0, 9e3, 1e7, math.nan], "spikes"),
    "explosion": (np.r_[0.3, 0.4, 2.0, 9.0, 4.0, CALM], "explosion"),
    "explosion that ends it": ([4.0, 3000.0, math.inf, math.nan], "explosion"),
    "nothing after the first step": ([4.0, math.nan, math.nan], "explosion"),
    "uneven": (RANDOM.lognormal(0.0, 1.5, 600), "uneven"),
}


@pytest.mark.parametrize(("norms", "kind"), RUNS.values(), ids=RUNS.keys())
def test_each_kind_of_run_gets_its_advice_and_a_policy_that_can_be_read(norms, kind):
    advice = advise(series(norms))
    assert advice.kind == kind, advice
    assert (advice.policy is None) == (kind == "none")
    if advice.policy is not None:
        read_policy(advice.policy)


def test_steps_that_are_not_finite_are_the_guards_business():
    assert (
        "2 steps are not finite: that is the guard's business" in advise(series(changed([200, 400], math.nan))).reason
    )


def test_the_ceiling_of_spikes_lets_every_ordinary_step_through():
    advice = advise(series(changed([100, 300], 50.0)))
    ordinary = float(np.delete(CALM, [100, 300]).max())
    assert read_policy(advice.policy).max_norm == pytest.approx(ordinary, rel=0.05)


@pytest.mark.parametrize(
    ("optimizer", "rate", "kind"),
    [
        ("SGD", 0.1, "layers"),
        ("SGD", 0.01, "none"),
        ("AdamW", 0.1, "none"),
        ("Muon", 0.1, "none"),
        (None, None, "none"),
    ],
)
def test_a_layer_whose_steps_of_sgd_are_out_of_proportion_asks_for_agc(make_record, optimizer, rate, kind):
    norms = (0.01, 0.01, 0.01, 0.01, 0.01, 5.0)
    about = {"optimizer_kind": optimizer, "learning_rates": None if rate is None else (rate,) * 6}
    records = [make_record(step, layer_norms=norms, **about) for step in range(3)]
    advice = advise(series(CALM), records)
    assert advice.kind == kind
    assert kind == "none" or ("'head' is 5 times as large" in advice.reason and advice.policy == "AGC(ratio=0.04)")


def test_a_layer_that_is_large_only_beside_those_whose_gradient_vanishes_asks_for_no_clip(make_record):
    vanishing = (2e-5, 5e-5, 3e-4, 2e-3, 0.015, 0.22)  # five sigmoid layers at a rate of 0.05, measured
    about = {"optimizer_kind": "SGD", "learning_rates": (0.05,) * 6}
    records = [make_record(step, layer_norms=vanishing, **about) for step in range(3)]
    assert advise(series(CALM), records).policy is None


@pytest.mark.parametrize("lost", [1, 180])
def test_ordinary_norms_and_then_nan_are_a_bad_batch_and_no_explosion(lost):
    early = [0.088, 0.1, 0.39, 0.2, 0.15, 0.2, 0.25, 0.16, 0.22, 0.17]
    advice = advise(series(early + [math.nan] * lost))
    assert advice.policy is None and "that is the guard's business" in advice.reason


@pytest.mark.parametrize("norms", [[4.4, 79.3, 1.8e7, math.nan], [13.6, 12282.0, 0.0, math.nan], [3.9e5, math.nan]])
def test_a_rise_into_nan_or_nan_at_once_is_an_explosion(norms):
    assert advise(series(norms)).kind == "explosion"


def test_a_run_without_a_finite_norm_is_not_cured_by_a_clip():
    assert "no clip can help" in advise(series([math.nan, math.nan])).reason
