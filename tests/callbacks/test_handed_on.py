"""What the record says of clipping is what the optimizer is handed, or it does not say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradguard import GradGuard, GradientNormMonitor, NormClip
from tests.callbacks.test_optimizers import Net, batches


class ClipsItself(Net):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")


class HasAHook(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.mul_(2.0)


class LaterCallback(Callback):
    def on_before_optimizer_step(self, *args: Any) -> None:
        pass


CASES = {
    "configure_gradient_clipping": (ClipsItself, [], {}),
    "a hook of the module": (HasAHook, [], {}),
    "a later callback": (Net, [LaterCallback()], {}),
}


@pytest.mark.parametrize(("module", "later", "options"), CASES.values(), ids=CASES)
def test_beside_another_that_changes_gradients_it_is_warned_and_nothing_is_claimed(
    make_trainer, module, later, options
):
    guard = GradGuard(clip=NormClip(1.0), log_every_n_steps=1)
    with pytest.warns(UserWarning, match="GradGuard clips before .*, which may change gradients once more"):
        make_trainer(callbacks=[guard, *later], **options).fit(module(), batches(3))
    assert [record.post_clip_norm for record in guard.records] == [None] * 3


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_beside_the_trainers_own_clipping_the_monitor_claims_nothing(make_trainer, algorithm):
    monitor = GradientNormMonitor(log_every_n_steps=1)
    trainer = make_trainer(callbacks=[monitor], gradient_clip_val=0.5, gradient_clip_algorithm=algorithm)
    trainer.fit(Net(), batches(3))
    assert [record.post_clip_norm for record in monitor.records] == [None] * 3
    assert all(record.total_norm > 0.5 for record in monitor.records)


def test_where_nobody_else_changes_gradients_it_is_what_the_optimizer_gets(make_trainer):
    module, guard = Net(), GradGuard(clip=NormClip(1.0), log_every_n_steps=1)
    make_trainer(callbacks=[LaterCallback(), guard]).fit(module, batches(3))
    assert [record.post_clip_norm for record in guard.records] == pytest.approx(module.got, rel=1e-4)


def test_a_bad_step_makes_a_record_though_nobody_guards(make_trainer):
    monitor = GradientNormMonitor(log_every_n_steps=50)
    make_trainer(callbacks=[monitor], log_every_n_steps=50).fit(Net(), batches(8, bad=(3,)))
    asked = [record for record in monitor.records if not record.early]  # probes ask for others between them
    assert [(record.step, record.verdict) for record in asked][:2] == [(0, "ok"), (3, "nonfinite")]


@pytest.mark.parametrize("on_nonfinite", [None, "skip"])
def test_a_norm_that_overflows_over_finite_elements_is_clipped_to_its_threshold(on_nonfinite):
    from lightning_gradguard import GradientPipeline

    net = torch.nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, clip=NormClip(1.0), on_nonfinite=on_nonfinite, rules=[])
    net.weight.grad = torch.full_like(net.weight, 1e30)
    pipeline.before_step()
    assert float(net.weight.grad.double().norm()) == pytest.approx(1.0, rel=1e-4)
