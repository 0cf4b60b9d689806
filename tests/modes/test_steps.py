"""What a step is: automatic, manual, accumulated, repeated, missing, or not ours at all."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from torch import nn

from lightning_gradguard import AdaptiveGradientClipping, GradGuard, GradientNormMonitor, NonFiniteGuard, NormClip
from lightning_gradguard.callbacks.trainer import is_deepspeed
from tests.modes.modes import on_cpu, quiet_trainer
from tests.modes.training import (
    NUM_BATCHES,
    ManualProblem,
    Problem,
    Twin,
    batches,
    examples,
    largest_deviation,
    whole,
)


def fit(tmp_path: Any, module: pl.LightningModule, callbacks: list[Any], **options: Any) -> pl.Trainer:
    trainer = quiet_trainer(str(tmp_path), callbacks, **options)
    trainer.fit(module, batches())
    return trainer


@pytest.mark.filterwarnings("ignore:.*returned `None`")  # which Lightning says once in a process
def test_a_batch_without_a_loss_is_no_step_of_ours(tmp_path: Any) -> None:
    class Reluctant(Problem):
        def training_step(self, batch: int, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    watch = GradGuard(log_every_n_steps=1)
    fit(tmp_path, Reluctant(), [watch])
    assert [record.step for record in watch.records] == [0, 1, 3, 4, 5]


def test_a_nan_in_one_accumulated_batch_drops_its_window_once(tmp_path: Any) -> None:
    watch = GradGuard(log_every_n_steps=1)
    with pytest.warns(UserWarning, match="was skipped"):
        fit(tmp_path, Problem(bad=[0]), [watch], accumulate_grad_batches=2)
    assert [record.verdict for record in watch.records] == ["skipped", "ok", "ok"]
    assert watch.records[-1].skipped_total == 1


class Adversaries(Problem):
    """Two optimizers, two steps each batch, under toggling."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(1, 1)

    def training_step(self, batch: int, batch_idx: int) -> None:
        for index, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            inputs, targets = examples(batch_idx)
            outputs = self.net(inputs)
            loss = (outputs - targets).square().mean() if index == 0 else self.other(outputs.detach()).square().mean()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.01), torch.optim.Adam(self.other.parameters())


@pytest.mark.parametrize("mode", [dict, lambda: on_cpu(2.0**10)], ids=["fp32", "16-mixed"])
def test_two_optimizers_have_their_own_layers_norms_and_steps(mode: Any, tmp_path: Any) -> None:
    watch = GradGuard(log_every_n_steps=1)
    trainer = fit(tmp_path, Adversaries(), [watch], **mode())
    first, second = ([r for r in watch.records if r.optimizer == index] for index in (0, 1))
    assert [r.step for r in first] == [r.step for r in second] == list(range(NUM_BATCHES))
    assert first[0].layers == ("net.first", "net.second", "net.head") and second[0].layers == ("other",)
    assert {"grad_norm_total/opt0", "grad_norm_total/opt1"} <= set(trainer.callback_metrics)


def test_a_raw_optimizer_under_manual_optimization_is_not_seen_and_we_say_so(tmp_path: Any) -> None:
    class Behind(ManualProblem):
        def training_step(self, batch: int, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.loss(batch_idx).backward()
            optimizer.step()

    watch = GradGuard()
    with pytest.warns(UserWarning, match="Lightning calls no hook"):
        fit(tmp_path, Behind(), [watch])
    assert watch.records == []


@pytest.mark.parametrize("action", ["skip", "rollback", "stop", "raise"])
def test_lbfgs_cannot_be_guarded_and_is_refused_when_fit_starts(action: Any, tmp_path: Any) -> None:
    problem = Problem(optimizer=torch.optim.LBFGS)
    before = whole(problem.net)
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        fit(tmp_path, problem, [NonFiniteGuard(action)])
    assert largest_deviation(whole(problem.net), before) == 0.0


def test_a_module_that_calls_the_closure_itself_is_seen_once_a_step(tmp_path: Any) -> None:
    class Own(Problem):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()
            optimizer.step()

    module, watch = Own(), GradGuard(clip=NormClip(0.5), log_every_n_steps=1)
    fit(tmp_path, module, [watch])
    assert [record.step for record in watch.records] == list(range(NUM_BATCHES))
    twin = Twin(clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5))
    assert largest_deviation(whole(module.net), twin.weights) < 1e-5


def test_overflows_while_the_loss_scale_settles_are_no_alarm(tmp_path: Any) -> None:
    watch = GradGuard(on_nonfinite="raise", log_every_n_steps=1)
    fit(tmp_path, Problem(), [watch], max_epochs=3, **on_cpu(2.0**20))
    verdicts = [record.verdict for record in watch.records]
    assert verdicts[:2] == ["overflow", "overflow"] and verdicts[-3:] == ["ok", "ok", "ok"]


def test_a_trainer_that_clips_as_well_is_refused(tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException, match="would both clip"):
        fit(tmp_path, Problem(), [AdaptiveGradientClipping(NormClip(1.0))], gradient_clip_val=1.0)


def test_watching_a_trainer_that_clips_itself_shows_raw_norms(tmp_path: Any) -> None:
    watch = GradientNormMonitor(log_every_n_steps=1)
    fit(tmp_path, Problem(), [watch], gradient_clip_val=0.5)
    assert watch.records[0].total_norm == pytest.approx(Twin().totals[0], rel=1e-5)


class EngineStrategy(SingleDeviceStrategy):
    """Calls the hooks for every batch, as strategies do that accumulate gradients themselves."""

    handles_gradient_accumulation = True


def test_a_strategy_that_accumulates_itself_is_watched_at_its_steps_only(tmp_path: Any) -> None:
    watch = GradGuard(on_nonfinite=None, log_every_n_steps=1)
    fit(tmp_path, Problem(), [watch], strategy=EngineStrategy("cpu"), accumulate_grad_batches=3)
    assert len(watch.records) == NUM_BATCHES // 3


def test_deepspeed_is_known_by_its_own_class_and_flag() -> None:
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # its constructor wants DeepSpeed installed
    assert strategy.handles_gradient_accumulation
    assert is_deepspeed(type("Trainer", (), {"strategy": strategy})())


def test_under_deepspeed_the_engines_norm_is_passed_on(tmp_path: Any) -> None:
    class Engine(Problem):
        """Answers as DeepSpeed's engine does, which stands in the module's place in its strategy."""

        def get_global_grad_norm(self) -> float:
            return 2.5

    named = type("DeepSpeedStrategy", (EngineStrategy,), {})
    trainer = fit(tmp_path, Engine(), [GradientNormMonitor()], strategy=named("cpu"))
    assert float(trainer.callback_metrics["grad_norm_total"]) == 2.5


def test_the_last_epoch_of_weight_averaging_is_not_taken_for_training(tmp_path: Any) -> None:
    module = Problem(net=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
    watch = GradGuard(log_every_n_steps=1)
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
    fit(tmp_path, module, [watch, averaging], max_epochs=2)
    assert len(watch.records) == 2 * NUM_BATCHES


def test_a_second_fit_starts_afresh(tmp_path: Any) -> None:
    watch, module = GradGuard(log_every_n_steps=1), Problem()
    trainer = fit(tmp_path, module, [watch])
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches())
    assert [record.step for record in watch.records] == list(range(NUM_BATCHES, 2 * NUM_BATCHES))


def test_early_stopping_on_a_loss_that_was_logged_as_nan_stops_though_the_step_was_skipped(tmp_path: Any) -> None:
    class Logs(Problem):
        def training_step(self, batch: int, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            return loss

    module = Logs(bad=[NUM_BATCHES - 1])
    stopping = EarlyStopping("train_loss", check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="was skipped"):
        trainer = fit(tmp_path, module, [GradGuard(), stopping], max_epochs=3)
    assert trainer.current_epoch == 1 and all(bool(w.isfinite().all()) for w in module.parameters())


def test_the_hooks_leave_no_graph_behind(tmp_path: Any) -> None:
    seen: list[Any] = []

    class Looks(Problem):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.extend(p.grad for p in self.parameters())

    watch = GradGuard(clip=NormClip(0.5), log_every_n_steps=1)
    trainer = fit(tmp_path, Looks(), [watch])
    assert seen and not any(grad.requires_grad or grad.grad_fn for grad in seen)
    assert not trainer.callback_metrics["grad_norm_total"].requires_grad


def test_callbacks_that_a_module_configures_replace_those_of_the_trainer(tmp_path: Any) -> None:
    own = GradientNormMonitor(log_every_n_steps=1)

    class Configures(Problem):
        def configure_callbacks(self) -> Any:
            return [own]

    listed = GradientNormMonitor()
    trainer = fit(tmp_path, Configures(), [listed])
    assert own in trainer.callbacks and listed not in trainer.callbacks and len(own.records) == NUM_BATCHES


def test_two_callbacks_for_the_same_role_are_refused(tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException, match="remove one"):
        fit(tmp_path, Problem(), [GradGuard(), NonFiniteGuard()])
