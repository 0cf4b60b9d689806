"""Situations that users of other tools have reported: what the record says is what the optimizer gets."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, GradientNormMonitor, GradientPipeline, NormClip
from tests.callbacks.test_optimizers import Half, Net, batches
from tests.guard.models import half_precision


def total(parameters: Any) -> float:
    return total_of([p.grad for p in parameters if p.grad is not None])


def total_of(tensors: Any) -> float:
    return float(torch.nn.utils.get_total_norm(tensors))


def test_a_norm_that_is_logged_before_the_trainer_clips_elements_is_not_taken_for_the_one_after(make_trainer):
    class Logs(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.log("norm", total(self.parameters()))

    module, monitor = Logs(), GradientNormMonitor(log_every_n_steps=1)
    make_trainer(callbacks=[monitor], gradient_clip_val=0.25, gradient_clip_algorithm="value").fit(module, batches(3))
    assert [record.post_clip_norm for record in monitor.records] == pytest.approx(module.got, rel=1e-4)
    assert all(record.total_norm > 2 * record.post_clip_norm for record in monitor.records)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_before_the_backward_pass_is_seen_to_do_nothing(make_trainer, accumulate):
    class Early(Net):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = super().training_step(batch, index)
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)
            return loss

        def on_train_batch_end(self, *ignored: Any) -> None:
            if not self.trainer.fit_loop._should_accumulate():
                super().on_train_batch_end()

    module, monitor = Early(), GradientNormMonitor(log_every_n_steps=1)
    make_trainer(callbacks=[monitor], accumulate_grad_batches=accumulate).fit(module, batches(4))
    assert [record.post_clip_norm for record in monitor.records] == pytest.approx(module.got, rel=1e-4)
    assert all(record.post_clip_norm > 1.0 for record in monitor.records)


def test_muon_may_be_left_alone_where_the_other_optimizer_is_clipped(make_trainer):
    class Notes(Half):
        def on_train_batch_end(self, *ignored: Any) -> None:
            self.got += [total(group["params"]) for o in self.trainer.optimizers for group in o.param_groups]

    module, guard = Notes(), GradGuard(clip={1: NormClip(0.1)}, log_every_n_steps=1)
    make_trainer(callbacks=[guard]).fit(module, batches(3))
    assert module.got[1::2] == pytest.approx([0.1] * 3, rel=1e-4) and min(module.got[::2]) > 1.0
    assert [record.post_clip_norm for record in guard.records] == pytest.approx(module.got, rel=1e-4)


def test_a_closure_handed_to_the_optimizer_behind_lightnings_back_is_told_of(make_trainer):
    class Behind(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = Net.training_step(self, batch, index)
                self.manual_backward(loss)
                return loss

            optimizer = self.optimizers()
            optimizer.optimizer.step(closure=torch.enable_grad()(closure))

    guard = GradGuard()
    with pytest.warns(UserWarning, match="Lightning calls no hook"):
        make_trainer(callbacks=[guard]).fit(Behind(), batches(3))
    assert guard.records == []


class Gan(pl.LightningModule):
    """A generator and a discriminator, whose weights are bounded after each step, as in a Wasserstein GAN."""

    def __init__(self, by_step: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.discriminator, self.generator = nn.Linear(4, 1), nn.Linear(4, 4)
        self.by_step = by_step
        self.got: dict[str, list[float]] = {"discriminator": [], "generator": []}

    def configure_optimizers(self) -> Any:
        return [torch.optim.RMSprop(net.parameters(), lr=1e-2) for net in (self.discriminator, self.generator)]

    def training_step(self, batch: Any, index: int) -> None:
        for name, optimizer in zip(self.got, self.optimizers(), strict=True):

            def closure(name: str = name, optimizer: Any = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = 100 * self.discriminator(self.generator(batch[0])).mean()
                self.manual_backward(loss if name == "discriminator" else -loss)
                return loss

            if self.by_step:
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)
            self.got[name].append(total(getattr(self, name).parameters()))
            with torch.no_grad():
                for parameter in self.discriminator.parameters():
                    parameter.clamp_(-0.01, 0.01)


@pytest.mark.parametrize("by_step", [True, False], ids=["before the step", "by closure"])
def test_the_discriminator_alone_is_clipped_and_its_weights_are_bounded(make_trainer, by_step):
    module, guard = Gan(by_step), GradGuard(clip={0: NormClip(0.1)}, log_every_n_steps=1)
    make_trainer(callbacks=[guard]).fit(module, batches(4))
    assert module.got["discriminator"] == pytest.approx([0.1] * 4, rel=1e-3)
    assert min(module.got["generator"]) > 0.5
    for index, name in enumerate(module.got):
        records = [record for record in guard.records if record.optimizer == index]
        assert [record.post_clip_norm for record in records] == pytest.approx(module.got[name], rel=1e-4)


@pytest.mark.parametrize("clips", [False, True], ids=["ours alone", "the module clips scaled gradients before us"])
def test_manual_optimization_under_a_loss_scaler_is_clipped_in_real_units(make_trainer, clips):
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            if clips:
                self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()

    module, guard = Manual(), GradGuard(clip=NormClip(0.1), log_every_n_steps=1)
    make_trainer(callbacks=[guard], plugins=[half_precision(8.0)]).fit(module, batches(3))
    # What was clipped to 0.5 with the scale of 8 in it is 0.0625 without.
    expected = [0.5 / 8 if clips else 0.1] * 3
    assert module.got == pytest.approx(expected, rel=1e-2)
    assert [record.post_clip_norm for record in guard.records] == pytest.approx(module.got, rel=1e-3)


def test_a_model_that_grows_under_a_loss_scaler_is_measured_whole_and_unscaled_once():
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 4)])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with GradientPipeline(net, optimizer, clip=NormClip(1.0), on_nonfinite="skip", log_every_n_steps=1) as pipeline:
        for step in range(9):
            if step % 3 == 2:
                net.append(nn.Linear(4, 4))
                optimizer.add_param_group({"params": net[-1].parameters()})
            x = torch.ones(2, 4)
            for layer in net:
                x = layer(x)
            loss = 100 * x.square().mean()
            expected = total_of(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            record = pipeline.before_step(scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            assert record is not None and record.total_norm == pytest.approx(expected, rel=1e-4)
            assert total(net.parameters()) == pytest.approx(min(expected, 1.0), rel=1e-4)
            assert len(record.layers) == len(net)


@pytest.mark.parametrize(("factor", "left"), [(1.0, 1.0), (1e20, 1.0), (float("inf"), None)])
def test_finite_gradients_of_any_size_are_clipped_and_infinite_ones_are_dropped(factor, left):
    p = nn.Parameter(torch.ones(100))
    optimizer = torch.optim.SGD([p], lr=0.1)
    pipeline = GradientPipeline(nn.ParameterList([p]), optimizer, clip=NormClip(1.0), on_nonfinite="skip")
    (p * factor).sum().backward()
    pipeline.before_step()
    before = p.detach().clone()
    norm = None if p.grad is None else float(p.grad.norm())
    optimizer.step()
    assert norm == (left if left is None else pytest.approx(left, rel=1e-5))
    assert torch.equal(before, p) == (left is None)
