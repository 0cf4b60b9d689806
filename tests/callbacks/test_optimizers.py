"""Whatever the user does to optimizers under way: what is recorded, clipped and dropped is what the optimizer gets."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradguard import AdaptiveGradientClipping, GradGuard, GradientNormMonitor, NormClip, ZClip


class Net(pl.LightningModule):
    """A small regression that notes the norm which each step got, or ``None`` for a step without gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.got: list[float | None] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean() * 100

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def on_train_batch_end(self, *ignored: Any) -> None:
        grads = [p.grad for o in self.trainer.optimizers for g in o.param_groups for p in g["params"]]
        there = [grad for grad in grads if grad is not None]
        self.got.append(float(torch.nn.utils.get_total_norm(there)) if there else None)


def batches(count, bad=()):
    x = torch.randn(count * 4, 4, generator=torch.Generator().manual_seed(1))
    for index in bad:
        x[index * 4] = math.nan
    return DataLoader(TensorDataset(x), batch_size=4)


def clipped_to(norm, count):
    return [pytest.approx(norm, rel=1e-3)] * count


class Anew(Net):
    """Makes its optimizer anew at one batch, in one of the ways there are."""

    def __init__(self, how: str, at: int) -> None:
        super().__init__()
        self.how, self.at = how, at

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if self.trainer.global_step == self.at:
            if self.how == "setup_optimizers":
                self.trainer.strategy.setup_optimizers(self.trainer)
            else:
                self.trainer.optimizers = [torch.optim.Adam(self.parameters(), lr=1e-3)]


@pytest.mark.parametrize("at", [5, 7], ids=["between epochs", "within an epoch"])
@pytest.mark.parametrize("how", ["setup_optimizers", "trainer.optimizers"])
def test_an_optimizer_that_is_made_anew_is_clipped_and_guarded_from_its_first_step(make_trainer, how, at):
    module, guard = Anew(how, at), GradGuard(clip=NormClip(0.1), log_every_n_steps=1)
    with pytest.warns(UserWarning, match="step 3 was skipped"):
        make_trainer(callbacks=[guard], max_epochs=2).fit(module, batches(5, bad=(3,)))
    assert module.got == [*clipped_to(0.1, 3), None, *clipped_to(0.1, 4), None, *clipped_to(0.1, 1)]
    assert [r.verdict for r in guard.records] == ["clipped"] * 3 + ["skipped"] + ["clipped"] * 4 + [
        "skipped",
        "clipped",
    ]
    assert guard.records[-1].skipped_total == 2


def test_statistics_stay_with_the_parameters_when_the_optimizer_is_made_anew(make_trainer):
    thresholds = []
    for at in (3, 10**6):
        guard = GradGuard(clip=ZClip(), log_every_n_steps=1)
        make_trainer(callbacks=[guard]).fit(Anew("setup_optimizers", at), batches(6))
        thresholds.append([record.threshold for record in guard.records])
    assert thresholds[0] == thresholds[1]


class Fold(Net):
    """Replaces one of its two optimizers under way."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        if index == 2:
            self.trainer.optimizers = [self.trainer.optimizers[0], torch.optim.SGD(self.net[2].parameters(), lr=1e-3)]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), lr=1e-3) for i in (0, 2)]


def test_one_of_two_optimizers_may_be_made_anew(make_trainer):
    module, guard = Fold(), GradGuard(clip=NormClip(0.1), log_every_n_steps=1)
    make_trainer(callbacks=[guard]).fit(module, batches(5))
    assert module.got == clipped_to(math.sqrt(0.02), 5)
    assert [(r.step, r.optimizer) for r in guard.records] == [(step, o) for step in range(5) for o in (0, 1)]


class Half(Fold):
    """Muon for matrices, AdamW for the rest, over one net."""

    def __init__(self, bad: int | None = None) -> None:
        super().__init__()
        self.bad = bad

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(Net.training_step(self, batch, index))
        if index == self.bad:
            self.net[0].weight.grad[0, 0] = math.inf
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        matrices = [self.net[0].weight, self.net[2].weight]
        return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW([self.net[0].bias, self.net[2].bias], lr=1e-2)]


def test_two_optimizers_over_one_net_are_clipped_by_one_norm_and_dropped_together(make_trainer):
    module, guard = Half(bad=3), GradGuard(clip=NormClip(1.0), log_every_n_steps=1, joint=True)
    with pytest.warns(UserWarning, match="step 3 was skipped"):
        make_trainer(callbacks=[guard]).fit(module, batches(5))
    assert module.got == [*clipped_to(1.0, 3), None, *clipped_to(1.0, 1)]
    assert [(r.step, r.optimizer, r.num_optimizers, r.verdict) for r in guard.records] == [
        *[(step, 0, 1, "clipped") for step in range(3)],
        (3, 0, 1, "skipped"),
        (4, 0, 1, "clipped"),
    ]
    assert guard.records[0].layers == ("net.0", "net.2")


class Changing(Half):
    """Changes the list of its optimizers under way."""

    def __init__(self, how: str) -> None:
        super().__init__(bad=4)
        self.how = how

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if index != 2:
            return
        first, second = self.trainer.optimizers
        if self.how == "one goes":
            self.trainer.optimizers = [first]
        elif self.how == "one comes":
            self.net.append(nn.Linear(1, 1))
            self.trainer.optimizers = [first, second, torch.optim.SGD(self.net[3].parameters(), lr=1e-3)]
        else:
            self.trainer.optimizers = [second, first]

    def optimizers(self, *args: Any, **kwargs: Any) -> Any:
        found = super().optimizers(*args, **kwargs)
        return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("how", ["one goes", "one comes", "they change places"])
def test_where_one_of_several_comes_or_goes_the_joint_step_is_that_of_those_which_are_there(make_trainer, how):
    module, guard = Changing(how), GradGuard(clip=NormClip(0.1), log_every_n_steps=1, joint=True)
    with pytest.warns(UserWarning, match="step 4 was skipped"):
        make_trainer(callbacks=[guard]).fit(module, batches(6))
    assert module.got == [*clipped_to(0.1, 4), None, *clipped_to(0.1, 1)]
    assert [r.verdict for r in guard.records] == ["clipped"] * 4 + ["skipped", "clipped"]
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_apart_they_are_clipped_each_by_its_own_norm(make_trainer):
    module = Half()
    make_trainer(callbacks=[AdaptiveGradientClipping(NormClip(1.0))]).fit(module, batches(3))
    assert module.got == clipped_to(math.sqrt(2.0), 3)


@pytest.mark.parametrize("bad", [None, 2], ids=["finite", "infinite"])
def test_a_joint_step_is_right_under_a_loss_scaler(make_trainer, bad):
    """Each optimizer is unscaled by Lightning just before its own step, when the joint decision has been taken."""
    module, guard = Half(bad=bad), GradGuard(clip=NormClip(1.0), log_every_n_steps=1, joint=True)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    make_trainer(callbacks=[guard], plugins=[precision]).fit(module, batches(4))
    got = [norm for index, norm in enumerate(module.got) if index != bad]
    assert got == clipped_to(1.0, len(got))
    assert [r.verdict for r in guard.records] == ["overflow" if step == bad else "clipped" for step in range(4)]
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


class Rare(Fold):
    """Steps its optimizer at batches that never meet the logging interval."""

    def training_step(self, batch: Any, index: int) -> None:
        first, second = self.optimizers()
        self.manual_backward(Net.training_step(self, batch, index))
        first.step()
        if index % 5 == 0:
            second.step()
        first.zero_grad(), second.zero_grad()

    def on_train_batch_end(self, *ignored: Any) -> None:
        pass


def test_each_optimizer_has_records_about_as_often_as_asked_its_first_step_and_its_last(make_trainer):
    monitor = GradientNormMonitor(log_every_n_steps=20, rules=[])
    make_trainer(callbacks=[monitor], log_every_n_steps=20).fit(Rare(), batches(103))
    steps = [[r.step for r in monitor.records if r.optimizer == index] for index in (0, 1)]
    assert steps == [[0, 19, 39, 59, 79, 99, 102], [0, 20, 40, 60, 80, 100]]
    assert sum(r.num_steps for r in monitor.records if r.optimizer == 1) == 21


class Critics(Fold):
    """Steps one optimizer three times in a batch."""

    def training_step(self, batch: Any, index: int) -> None:
        first, second = self.optimizers()
        for _ in range(3):
            first.zero_grad()
            self.manual_backward(Net.training_step(self, batch, index))
            first.step()
        second.step()


def test_several_steps_in_one_batch_are_folded_into_one_place(make_trainer):
    monitor = GradientNormMonitor(log_every_n_steps=1, rules=[])
    make_trainer(callbacks=[monitor]).fit(Critics(), batches(3))
    first = [r for r in monitor.records if r.optimizer == 0]
    assert [r.step for r in first] == [0, 1, 2, 2]  # the last one is what was folded until the end
    assert sum(r.num_steps for r in first) == 9


class InBackward(Net):
    """Steps an optimizer for each parameter inside the backward pass."""

    def configure_optimizers(self) -> Any:
        for parameter in self.parameters():
            optimizer = torch.optim.SGD([parameter], lr=1e-3)
            parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Unwrapped(Fold):
    """Steps optimizers that it got without Lightning's wrapper."""

    def training_step(self, batch: Any, index: int) -> None:
        first, _ = self.optimizers(use_pl_optimizer=False)
        Net.training_step(self, batch, index).backward()
        first.step()


@pytest.mark.parametrize("module", [InBackward, Unwrapped])
def test_a_step_where_lightning_calls_no_hook_is_said_once_in_true_words(make_trainer, module):
    guard = GradGuard(clip=NormClip(1.0))
    with pytest.warns(UserWarning) as caught:
        make_trainer(callbacks=[guard]).fit(module(), batches(3))
    found = [str(w.message) for w in caught if "Lightning calls no hook" in str(w.message)]
    assert len(found) == 1
    assert "an optimizer (SGD) has stepped parameters of this model" in found[0]
    assert "its gradients cannot be seen, clipped or guarded" in found[0]


def test_where_gradients_are_gone_because_somebody_stepped_nothing_is_said_of_missing_gradients(make_trainer):
    class Frees(Net):
        def configure_optimizers(self) -> Any:
            def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            for parameter in self.parameters():
                optimizer = torch.optim.SGD([parameter], lr=1e-3)
                parameter.register_post_accumulate_grad_hook(lambda p, optimizer=optimizer: step(p, optimizer))
            return torch.optim.SGD(self.parameters(), lr=0.0)

    guard = GradGuard()
    with pytest.warns(UserWarning, match="Lightning calls no hook"):
        make_trainer(callbacks=[guard]).fit(Frees(), batches(9))
    assert guard.records == []


def test_a_group_that_comes_between_our_clipping_and_the_step_is_told_of(make_trainer):
    class Grows(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[2].parameters(), lr=1e-3)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 1:
                optimizer.add_param_group({"params": list(self.net[0].parameters())})

    module, guard = Grows(), GradGuard(clip=NormClip(0.1), log_every_n_steps=1)
    with pytest.warns(UserWarning, match="once more"):
        make_trainer(callbacks=[guard]).fit(module, batches(4))
    assert [record.post_clip_norm for record in guard.records] == pytest.approx(module.got, rel=1e-4)
    assert module.got[1] > 1.0 and module.got[2] == pytest.approx(0.1, rel=1e-4)


class OfAnotherModel(Net):
    """Trains another model on the side, which is none of our business."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        other = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        other(batch[0]).sum().backward()
        optimizer.step()
        return super().training_step(batch, index)


def test_an_optimizer_of_another_model_is_left_alone(make_trainer):
    make_trainer(callbacks=[GradGuard(clip=NormClip(1.0))]).fit(OfAnotherModel(), batches(3))


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=1e-3)
            optimizer.param_groups[-1]["name"] = "backbone"


class Finetuned(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([{"params": list(self.net[2].parameters()), "name": "head"}], lr=1e-3)


def test_a_policy_for_a_group_that_is_unfrozen_later_is_taken_when_the_group_comes(make_trainer):
    module = Finetuned()
    clipping = AdaptiveGradientClipping({"backbone": NormClip(0.01), "head": NormClip(1.0)})
    with pytest.warns(UserWarning, match="groups 'backbone', which do not exist yet: they wait for them"):
        make_trainer(callbacks=[Unfreeze(), clipping], max_epochs=2).fit(module, batches(3))
    assert module.got == [*clipped_to(1.0, 3), *clipped_to(math.hypot(1.0, 0.01), 3)]


def test_a_policy_for_a_group_that_never_comes_is_named_at_the_end(make_trainer):
    clipping = AdaptiveGradientClipping({"hed": NormClip(0.01)})
    with pytest.warns(UserWarning, match="parameter groups 'hed'") as caught:
        make_trainer(callbacks=[clipping]).fit(Finetuned(), batches(3))
    first, last = [str(w.message) for w in caught if "'hed'" in str(w.message)]
    assert "which do not exist yet: they wait for them; the groups are 'head'" in first
    assert "were never used: no group of that name came; the groups are 'head'" in last


def test_the_norm_that_callbacks_monitor_stays_finite_when_a_step_is_dropped(make_trainer):
    stopping = EarlyStopping("grad_norm_total", patience=50, check_on_train_epoch_end=True)
    trainer = make_trainer(callbacks=[GradGuard(clip=NormClip(1.0)), stopping], max_epochs=3)
    with pytest.warns(UserWarning, match="step 4 was skipped"):
        trainer.fit(Net(), batches(5, bad=(4,)))
    assert trainer.current_epoch == 3
    assert math.isfinite(float(trainer.callback_metrics["grad_norm_total"]))
    assert float(trainer.callback_metrics["gradguard/skipped_steps"]) == 3
