"""A policy that is watched before it is trusted: it decides, and every bit of the run is that of an unwatched one."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gradguard import (
    AGC,
    AdaGC,
    AdaptiveGradientClipping,
    ClipPolicy,
    GradGuard,
    MemorySink,
    NormClip,
    ValueClip,
    ZClip,
)
from lightning_gradguard.diagnose.rules.clipping_always import ClippingAlways
from lightning_gradguard.report.run import Run


class Small(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean() * 100.0

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(40, 4)), batch_size=4)


def bits_of(make_trainer, callbacks, **options):
    torch.manual_seed(3)
    module = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(callbacks=callbacks, **options).fit(module)
    return [p.detach().clone() for p in module.parameters()], torch.rand(1)


def same(left, right):
    return all(map(torch.equal, left[0], right[0])) and torch.equal(left[1], right[1])


class Careless(ClipPolicy):
    """Draws random numbers, and fails at its third step."""

    def __init__(self):
        self.calls = 0

    def init_state(self, layout, device):
        return {}

    def decide(self, measurement, state):
        self.calls += 1
        torch.rand(3)
        if self.calls == 3:
            raise RuntimeError("a mistake of mine")
        return NormClip(1e-6).decide(measurement, state)


POLICIES = [NormClip(1e-3), ZClip(max_norm=1e-3), ValueClip(1e-5), AGC(1e-6), AdaGC(warmup_max_norm=1e-3), Careless()]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_every_bit_is_that_of_an_unwatched_run_and_the_real_thing_differs(make_trainer, policy):
    plain = bits_of(make_trainer, [])
    assert same(bits_of(make_trainer, [AdaptiveGradientClipping(policy, dry_run=True)]), plain)
    assert same(bits_of(make_trainer, [GradGuard(clip=policy, dry_run=True, rules=[], verbose=False)]), plain)
    if not isinstance(policy, Careless):
        assert not same(bits_of(make_trainer, [AdaptiveGradientClipping(policy)]), plain)


def test_records_tell_what_it_would_have_done_and_what_was_applied(make_trainer):
    memory = MemorySink()
    rules = [ClippingAlways(rate=0.1, coefficient=0.5)]
    guard = GradGuard(clip=NormClip(1e-3), dry_run=True, rules=rules, sinks=[memory], verbose=False)
    bits_of(make_trainer, [guard])
    assert len(memory.records) == 10
    for record in memory.records:
        assert record.dry_run and record.verdict == "ok"
        assert record.threshold == pytest.approx(1e-3)
        assert record.coefficient == pytest.approx(1e-3 / record.total_norm, rel=1e-2)
        assert record.post_clip_norm == record.total_norm and record.cosine == 1.0
        assert (record.num_clipped, record.clip_rate, record.findings) == (1, 1.0, ())
    assert "all would be clipped (dry run)" in Run(memory.records).summaries[0].counts


def test_it_goes_beside_the_trainers_own_clip(make_trainer):
    plain = bits_of(make_trainer, [], gradient_clip_val=0.5)
    assert same(bits_of(make_trainer, [AdaptiveGradientClipping(ZClip(), dry_run=True)], gradient_clip_val=0.5), plain)


def test_a_policy_that_fails_is_taken_away_with_one_warning(make_trainer):
    with pytest.warns(UserWarning, match="the dry run of the policy of optimizer 0 failed .*a mistake of mine"):
        make_trainer(callbacks=[AdaptiveGradientClipping(Careless(), dry_run=True)]).fit(Small())


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="dry_run must be True or False, got 1"):
        AdaptiveGradientClipping(ZClip(), dry_run=1)
    with pytest.warns(UserWarning, match="with clip=None, dry_run=True has no effect"):
        GradGuard(dry_run=True)
