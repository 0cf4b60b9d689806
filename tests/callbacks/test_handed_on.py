"""What the record says of clipping is what the optimizer is handed, or it does not say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision

from lightning_gradguard import GradGuard, GradientNormMonitor, NormClip
from tests.callbacks.test_optimizers import Half, Net, batches


class ClipsItself(Net):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")


class HasAHook(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.mul_(2.0)


class DataHook(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.data.clamp_(-0.1, 0.1)  # through .data, which torch does not count as a write


class NewTensors(Callback):
    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        for parameter in module.parameters():
            parameter.grad = -parameter.grad  # of the same norm


class LaterCallback(Callback):
    def on_before_optimizer_step(self, *args: Any) -> None:
        pass


class Looks(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("norm", torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]))


CHANGED = {
    "configure_gradient_clipping": (ClipsItself, []),
    "a hook of the module": (HasAHook, []),
    "through .data": (DataHook, []),
    "a later callback": (Net, [NewTensors()]),
}
SCALER = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**4))


@pytest.mark.parametrize("plugins", [[], [SCALER]], ids=["float32", "loss scaler"])
@pytest.mark.parametrize(("module", "later"), CHANGED.values(), ids=CHANGED)
def test_what_others_make_of_the_gradients_is_measured_and_warned_of(make_trainer, module, later, plugins):
    module, guard = module(), GradGuard(clip=NormClip(1.0), log_every_n_steps=1)
    with pytest.warns(UserWarning, match="GradGuard clips before .*, and gradients are changed once more") as told:
        make_trainer(callbacks=[guard, *later], plugins=plugins).fit(module, batches(3))
    assert len([w for w in told if "once more" in str(w.message)]) == 1
    assert [record.post_clip_norm for record in guard.records] == pytest.approx(module.got, rel=1e-4)
    assert [record.cosine for record in guard.records] == [None] * 3


@pytest.mark.parametrize(("module", "later"), [(Looks, []), (Net, [LaterCallback()])], ids=["module", "callback"])
def test_who_only_looks_at_gradients_is_no_reason_to_warn(make_trainer, module, later):
    module, guard = module(), GradGuard(clip=NormClip(1.0), log_every_n_steps=1)
    make_trainer(callbacks=[guard, *later]).fit(module, batches(3))
    assert [record.post_clip_norm for record in guard.records] == pytest.approx(module.got, rel=1e-4)
    assert [record.cosine for record in guard.records] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_beside_the_trainers_own_clipping_the_monitor_tells_what_the_optimizer_gets(make_trainer, algorithm):
    module, monitor = Net(), GradientNormMonitor(log_every_n_steps=1)
    trainer = make_trainer(callbacks=[monitor], gradient_clip_val=0.5, gradient_clip_algorithm=algorithm)
    trainer.fit(module, batches(3))
    assert [record.post_clip_norm for record in monitor.records] == pytest.approx(module.got, rel=1e-4)
    assert all(record.total_norm > record.post_clip_norm for record in monitor.records)


def test_of_two_optimizers_taken_as_one_the_last_tells(make_trainer):
    class Changes(Half):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for group in optimizer.param_groups:
                torch._foreach_mul_([parameter.grad for parameter in group["params"]], 0.5)

    module, guard = Changes(), GradGuard(clip=NormClip(1.0), log_every_n_steps=1, joint=True)
    with pytest.warns(UserWarning, match="once more"):
        make_trainer(callbacks=[guard]).fit(module, batches(3))
    assert [record.post_clip_norm for record in guard.records] == pytest.approx([0.5] * 3, rel=1e-4)


def test_an_overflow_that_the_scaler_drops_has_a_record_without_a_norm_after_clipping(make_trainer):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    guard = GradGuard(clip=NormClip(1.0), on_nonfinite=None, log_every_n_steps=1)
    trainer = make_trainer(callbacks=[guard, LaterCallback()], plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    trainer.fit(Net(), batches(3, bad=(1,)))
    assert [record.verdict for record in guard.records] == ["clipped", "overflow", "clipped"]
    assert [record.post_clip_norm is None for record in guard.records] == [False, True, False]


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
