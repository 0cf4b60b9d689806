"""Situations that users of other tools have reported: what the record says is what the optimizer gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradguard import GradGuard, GradientNormMonitor, NormClip
from tests.callbacks.test_optimizers import Half, Net, batches


def total(parameters: Any) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


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
