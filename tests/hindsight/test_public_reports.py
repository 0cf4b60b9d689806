"""Questions that people have asked in public, rebuilt small: how often does my clip engage, and what should it be?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, MemorySink, NormClip, whatif
from lightning_gradguard.diagnose.quiet import quiet_record


def train(norm_of_step, steps, state=None):
    """Steps with gradients of given norms; returns the records and the state at the end."""
    net, memory = nn.Linear(4, 1, bias=False), MemorySink()
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.0), rules=[], sinks=[memory])
    if state is not None:
        pipeline.load_state_dict(state)
    for step in steps:
        net.weight.grad = torch.full_like(net.weight, norm_of_step(step) / 2.0)
        pipeline.before_step()
    state = pipeline.state_dict()
    pipeline.close()
    return memory.records, state


def test_a_loss_that_is_normalized_anew_makes_a_clip_at_one_idle_and_the_table_says_so():
    """A hydrology model: with the loss as a sum over steps every step was clipped at 1, with the mean none was."""

    def records(reduce):
        torch.manual_seed(0)
        net, memory = nn.LSTM(4, 16, batch_first=True), MemorySink()
        pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.0), rules=[], sinks=[memory])
        for _ in range(40):
            net.zero_grad()
            out, _ = net(torch.randn(16, 8, 4))
            reduce((out - 1.0).square().mean((0, 2))).mul(8.0).backward()  # eight steps predicted
            pipeline.before_step()
            pipeline.optimizer.step()
        pipeline.close()
        return memory.records

    summed, mean = (whatif(records(reduce)).optimizers[0] for reduce in (torch.sum, lambda steps: steps.mean() / 8.0))
    assert (summed.above_one, mean.above_one) == (1.0, 0.0)
    assert summed.thresholds[0.5] / mean.thresholds[0.5] == pytest.approx(64.0, rel=0.05)


def test_a_sweep_of_ceilings_far_below_the_norm_is_told_to_be_one_of_learning_rates():
    """A sweep over 1, 2, 3, 5, 10 with a mean norm of 20: each clips nearly all, and differs in the step's length."""
    norms = np.random.default_rng(0).lognormal(np.log(18.0), 0.45, 300)
    records, _ = train(lambda step: norms[step], range(300))
    ceilings = [NormClip(ceiling) for ceiling in (2.0, 3.0, 5.0, 10.0)]
    rows = {row["policy"]: row for row in whatif(records, ceilings).rows()}
    shares = [rows[f"NormClip(max_norm={ceiling})"]["clipped"] for ceiling in (1.0, 2.0, 3.0, 5.0, 10.0)]
    assert min(shares) > 0.85 and shares == sorted(shares, reverse=True)
    assert whatif(records).optimizers[0].advice.kind == "none"
    assert whatif(records).optimizers[0].thresholds[0.01] > 40.0


def test_the_share_of_a_resumed_run_is_that_of_one_that_went_through():
    """A rolling window of clipped steps that was not in the checkpoint changed on resumption."""
    norms = np.random.default_rng(1).lognormal(0.0, 0.5, 200)
    whole, _ = train(lambda step: norms[step], range(200))
    net, memory = nn.Linear(4, 1, bias=False), MemorySink()
    first = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.0), rules=[], sinks=[memory])
    for step in range(120):  # killed between two records, with its checkpoint
        net.weight.grad = torch.full_like(net.weight, norms[step] / 2.0)
        first.before_step()
    second, _ = train(lambda step: norms[step], range(120, 200), first.state_dict())
    assert whatif([*memory.records, *second]).rows() == whatif(whole).rows()


def test_a_batch_that_spikes_into_nan_asks_for_a_clip_and_says_that_it_is_not_enough():
    """A LoRA trainer: norms of 4.2, 5044, NaN, 1.8e8, 2.4: a clip bounds spikes, only the guard stops NaN."""
    norms = [4.2] * 20 + [5044.0] + [4.1] * 8 + [math.nan, 1.8e8] + [2.4] * 20
    advice = whatif([quiet_record(50, num_steps=len(norms), total_norms=tuple(norms))]).optimizers[0].advice
    assert advice.policy is not None and advice.policy.startswith("ZClip(")
    assert "1 step is not finite: that is the guard's business" in advice.reason


def test_a_loss_that_falls_and_is_nan_of_a_sudden_is_not_to_be_cured_by_a_lower_ceiling():
    """A face recognizer, clipped at 1 already: the loss decreases all the time and gets NaN suddenly."""
    norms = (*np.random.default_rng(0).lognormal(np.log(0.6), 0.2, 400).tolist(), *[math.nan] * 50)
    advice = whatif([quiet_record(449, num_steps=450, total_norms=norms)]).optimizers[0].advice
    assert advice.policy is None and "50 steps are not finite" in advice.reason


def test_agc_is_not_recommended_under_optimizers_that_make_all_gradients_alike():
    """Sweeps over surrogates of flows: AGC under Lion and AdamW was three to ten times worse than a plain ceiling."""
    hot = {"layer_norms": (0.01, 0.01, 0.01, 0.01, 0.01, 5.0), "learning_rates": (0.1,) * 6}
    norms = (1.0, 1.1, 0.9, 1.0) * 10

    def kind(optimizer):
        record = quiet_record(39, num_steps=40, total_norms=norms, optimizer_kind=optimizer, **hot)
        return whatif([record]).optimizers[0].advice.kind

    assert [kind(optimizer) for optimizer in ("Lion", "AdamW", "SGD")] == ["none", "none", "layers"]
