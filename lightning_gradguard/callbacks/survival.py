"""What surviving needs of Lightning: snapshots at the right time, batches, losses, schedulers and checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_gradguard.callbacks.stand_in import StandIn
from lightning_gradguard.callbacks.trainer import outer_module
from lightning_gradguard.guard.guard import Action, Guard, NonFiniteGradientError
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.harmless.part import Part
from lightning_gradguard.incident.blackbox import BlackBox, RunStep
from lightning_gradguard.incident.bundle import IncidentFolder
from lightning_gradguard.incident.fake_trainer import call_training_step, loss_of
from lightning_gradguard.measurement.sharding import is_distributed
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.record import StepRecord
from lightning_gradguard.spikes import SpikeRule


@dataclass(frozen=True)
class GuardOptions:
    """The arguments of :class:`~lightning_gradguard.callbacks.guard.NonFiniteGuard`."""

    action: Action = "skip"
    patience: int = 20
    incident_dir: str | os.PathLike[str] | None = None
    max_incidents: int = 3
    max_bytes: int = 10 * 2**30
    rollback_after: int = 3
    snapshot_every_n_steps: int = 100
    hold_lr_on_skip: bool = False
    spikes: SpikeRule | None = None
    loss_scale_floor: float = 1.0
    on_device: bool | None = None

    def make_guard(self) -> Guard:
        """Returns a fresh guard for one optimizer."""
        if self.on_device and self.hold_lr_on_skip:
            raise ValueError("hold_lr_on_skip needs to know of a bad step at once: pass on_device=None")
        return Guard(
            self.action,
            self.patience,
            loss_scale_floor=self.loss_scale_floor,
            spikes=self.spikes,
            on_device=False if self.hold_lr_on_skip else self.on_device,
        )


class Survival:
    """Puts recovery and incidents into one fit.

    Args:
        options: what to do.
        trainer: whose fit it is.
        module: the model.
    """

    def __init__(self, options: GuardOptions, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.options = options
        self.pipelines: Sequence[GradientPipeline] = ()
        self.recovery = Recovery(
            module,
            trainer.optimizers,
            rollback=options.action == "rollback",
            rollback_after=options.rollback_after,
            snapshot_every_n_steps=options.snapshot_every_n_steps,
        )
        self.incidents: BlackBox | None = None
        if options.incident_dir is not None:
            recording = Part("the recorder of incidents", "bad steps are not saved")
            self.incidents = recording.run(make_blackbox, options, trainer, module)
        self._module = module
        self._loss: Tensor | None = None
        self._failing = False
        self._stand_ins: list[StandIn] = []
        self._guard_checkpoints(trainer)
        if options.hold_lr_on_skip:
            self._hold_schedulers(trainer)

    def before_batch(self, batch: Any, index: int) -> None:
        """Remembers the batch, where incidents are saved."""
        if self.incidents is not None:
            self.incidents.part.run(self.incidents.before_batch, batch, index)

    def before_backward(self, loss: Tensor) -> None:
        """Adds up the loss of the step, in real units, where spikes are looked for; shows it to the black box."""
        if self.incidents is not None:
            self.incidents.before_backward(loss)
        if self.options.spikes is not None and self.options.spikes.watch_loss:
            self._loss = loss if self._loss is None else self._loss + loss

    def take_loss(self) -> Tensor | None:
        """Returns the loss since the last optimizer step."""
        loss, self._loss = self._loss, None
        return loss

    def after_step(self) -> None:
        """Starts a new step with the next batch."""
        if self.incidents is not None:
            self.incidents.part.run(self.incidents.after_step)

    def fail(self, trainer: pl.Trainer) -> None:
        """Takes note that an exception ends the fit: what is saved from now on is saved because of it.

        Whatever saves after an exception is called after this; then this leaves.
        """
        self._failing = True
        trainer.callbacks.append(_LastToGo(self))  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Takes away what stands in place of methods of Trainer and module."""
        for stand_in in self._stand_ins:
            stand_in.leave()

    def _hold_schedulers(self, trainer: pl.Trainer) -> None:
        def step(step_scheduler: Callable[..., None], scheduler: Any, metric: Any) -> None:
            by_step = any(c.scheduler is scheduler and c.interval == "step" for c in trainer.lr_scheduler_configs)
            dropped = any(p.optimizer is scheduler.optimizer and not p.moved for p in self.pipelines)
            if not (by_step and dropped):
                step_scheduler(scheduler, metric)

        self._stand_ins.append(StandIn(self._module, "lr_scheduler_step", step))

    def _guard_checkpoints(self, trainer: pl.Trainer) -> None:
        """No checkpoint with a NaN in it: gradients may be fine and the update overflow all the same."""

        def save_if_finite(save: Callable[..., None], *args: Any, **kwargs: Any) -> None:
            if self._may_save(trainer):
                save(*args, **kwargs)

        self._stand_ins.append(StandIn(trainer, "save_checkpoint", save_if_finite))

    def _may_save(self, trainer: pl.Trainer) -> bool:
        spoiled = self.recovery.buffers.not_finite()
        if not self.recovery.has_nonfinite_weights() and not spoiled:
            return True
        what = f"buffers {', '.join(spoiled[:5])}" if spoiled else "weights"
        if self.recovery.roll_back():
            rank_zero_warn(f"{what} were not finite when a checkpoint was due: rolled back before it was written")
            return True
        message = f"{what} are not finite after step {trainer.global_step}: no checkpoint was written"
        if not self._failing:
            raise NonFiniteGradientError(
                f"{message}. The last update overflowed although its gradients were finite: lower the learning rate, "
                "clip gradients, or use NonFiniteGuard('rollback')."
            )
        rank_zero_warn(message)
        return False


class _LastToGo(Callback):
    """Stands last in a Trainer's list of callbacks while an exception goes round, and is gone after it."""

    def __init__(self, survival: Survival) -> None:
        self._survival = survival

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        self._survival.leave()


def make_blackbox(options: GuardOptions, trainer: pl.Trainer, module: pl.LightningModule) -> BlackBox:
    """Returns the incident recorder of one fit."""
    assert options.incident_dir is not None
    folder = IncidentFolder(options.incident_dir, max_incidents=options.max_incidents, max_bytes=options.max_bytes)
    reason = why_not_in_process(trainer, module)
    return BlackBox(
        folder,
        module,
        run=None if reason else make_run(trainer),
        not_run=reason,
        config=lambda: describe_run(trainer, module),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        outer=outer_module(trainer, module),
    )


def why_not_in_process(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Tells why the step cannot be run again inside the run; ``None`` where it can."""
    if not module.automatic_optimization:
        return "under manual optimization a training step runs its own backward passes and optimizer steps"
    is_fsdp = any("FSDP" in cls.__name__ for cls in type(trainer.strategy).__mro__)
    if is_fsdp or any(is_distributed(parameter) for parameter in module.parameters()):
        return "parameters are sharded, and a second forward pass would gather them out of turn"
    return None


def make_run(trainer: pl.Trainer) -> RunStep:
    """Returns the training step of one batch as the Trainer runs it, but for the hooks."""

    def run(module: Any, batch: Any, index: int) -> Tensor | None:
        with trainer.precision_plugin.train_step_context():
            loss = loss_of(call_training_step(module, batch, index))
        return None if loss is None else loss / trainer.accumulate_grad_batches

    return run


def describe_run(trainer: pl.Trainer, module: pl.LightningModule) -> Mapping[str, Any]:
    """Returns what a replay needs to know of the run."""
    precision = str(trainer.precision)
    autocast = None
    if precision.endswith("-mixed"):
        dtype = "bfloat16" if precision.startswith("bf16") else "float16"
        autocast = {"device_type": module.device.type, "dtype": dtype}
    return {
        "precision": precision,
        "autocast": autocast,
        "default_dtype": str(_step_dtype(trainer)),
        "accumulate_grad_batches": trainer.accumulate_grad_batches if module.automatic_optimization else 1,
        "automatic_optimization": module.automatic_optimization,
        "epoch": trainer.current_epoch,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "num_training_batches": _number(lambda: trainer.num_training_batches),
        "estimated_stepping_batches": _number(lambda: trainer.estimated_stepping_batches),
        "global_step": trainer.global_step,
        "strategy": type(trainer.strategy).__name__,
        "device": str(module.device),
    }


def _number(ask: Callable[[], float]) -> int | None:
    """``None`` where the Trainer does not know, or for a data loader without end."""
    with contextlib.suppress(Exception):
        return int(value) if math.isfinite(value := ask()) else None
    return None


def _step_dtype(trainer: pl.Trainer) -> torch.dtype:
    with trainer.precision_plugin.train_step_context():
        return torch.get_default_dtype()


def announce(record: StepRecord, pipeline: GradientPipeline, *, first: bool) -> None:
    """Tells the user of a bad step: the first one, and each that was saved."""
    done = "rolled back" if record.verdict == "rolled_back" else "skipped"
    what = f"gradients of {', '.join(record.nonfinite_layers[:5])} hold {record.cause}"
    if record.cause == "buffer":
        what = "the forward pass made buffers non-finite"
    elif record.cause == "spike":
        what = record.findings[-1].message
    saved = f" {pipeline.last_incident}" if pipeline.last_incident else ""
    if first:
        more = " Further ones are counted in gradguard/skipped_steps and not announced."
        rank_zero_warn(f"step {record.step} was {done}: {what}.{more}{saved}")
    elif saved:
        warnings.warn(f"step {record.step} was {done}: {what}.{saved}", stacklevel=2)
