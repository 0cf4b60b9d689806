"""The real policies over recorded norms: as they would have answered in the run, to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard import (
    AGC,
    AdaGC,
    AutoClip,
    Chain,
    Clip,
    ClipPolicy,
    GradientPipeline,
    MaxClip,
    MemorySink,
    NormClip,
    QuantileClip,
    ValueClip,
    ZClip,
)
from lightning_gradguard.hindsight.series import series_by_optimizer
from lightning_gradguard.hindsight.trial import try_policy

BY_NORM = {
    "NormClip": NormClip(1.0),
    "ZClip": ZClip(max_norm=4.0),
    "ZClip as published": ZClip(original=True),
    "AutoClip": AutoClip(window=20),
    "QuantileClip": QuantileClip(),
    "Chain": Chain([ZClip(), NormClip(1.5)]),
}
RAW = [float(norm) for norm in np.random.default_rng(0).lognormal(0.0, 1.0, 120)]
RAW[40], RAW[41], RAW[60], RAW[61] = math.nan, math.inf, 300.0, 0.0


@pytest.mark.parametrize("guard", [None, "skip"])
@pytest.mark.parametrize("policy", BY_NORM.values(), ids=BY_NORM.keys())
def test_thresholds_equal_those_of_a_live_run_that_is_only_watched_to_the_bit(policy, guard):
    net, memory = nn.Linear(4, 1, bias=False), MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pipeline = GradientPipeline(
        net, optimizer, clip=policy, dry_run=True, on_nonfinite=guard, rules=[], sinks=[memory], log_every_n_steps=1
    )
    for norm in RAW:
        net.weight.grad = torch.full_like(net.weight, norm / 2.0)
        pipeline.before_step()
    trial = try_policy(policy, series_by_optimizer(memory.records)[0].norms)
    assert len(memory.records) == len(RAW) == len(trial.norms)
    for record, threshold, coefficient in zip(memory.records, trial.thresholds, trial.coefficients, strict=True):
        if record.verdict == "ok":
            assert np.float32(record.threshold) == threshold
            assert record.coefficient == pytest.approx(float(coefficient), rel=1e-6)
            assert not isinstance(policy, ZClip | NormClip) or np.float32(record.coefficient) == coefficient


class ByMedian(ClipPolicy):
    """Goes by the norms of the parameters, though its coefficient is one number."""

    def init_state(self, layout, device):
        return {}

    def decide(self, measurement, state):
        return Clip(coefficient=(measurement.norms.median() / measurement.total).clamp(max=1.0))


NEEDS = {
    "units": (AGC(), "AGC\\(\\) needs the norms of units and of their weights"),
    "units in a chain": (Chain([NormClip(1.0), AGC()]), "needs the norms of units"),
    "parameters": (AdaGC(), "needs the norm of each parameter"),
    "largest elements": (MaxClip(), "needs the largest elements of the gradients"),
    "elements": (ValueClip(1.0), "needs the largest elements"),
    "values": (ZClip(by="value"), "ZClip\\(by='value'\\) needs the largest elements"),
    "values in a chain": (Chain([NormClip(1.0), AutoClip(by="value")]), "needs the largest elements"),
    "a user's own": (ByMedian(), "ByMedian\\(\\) needs more than the total norm"),
}


@pytest.mark.parametrize(("policy", "words"), NEEDS.values(), ids=NEEDS.keys())
def test_a_policy_that_needs_more_than_norms_is_refused_by_name_with_what_it_needs(policy, words):
    with pytest.raises(ValueError, match=words) as error:
        try_policy(policy, np.ones(5, dtype=np.float32))
    assert "dry_run=True" in str(error.value)


def test_a_step_that_is_not_finite_is_neither_clipped_nor_learned():
    with_nan = try_policy(ZClip(), np.array([1.0, 1.0, math.nan, math.inf, 9.0], dtype=np.float32))
    without = try_policy(ZClip(), np.array([1.0, 1.0, 9.0], dtype=np.float32))
    assert with_nan.clipped.tolist() == [False, False, False, False, True]
    assert with_nan.thresholds[-1] == without.thresholds[-1]
    assert np.isnan(with_nan.applied[2:4]).all()


def test_no_steps_are_no_answers():
    assert len(try_policy(ZClip(), np.zeros(0, np.float32)).coefficients) == 0
