"""What surviving needs of Lightning: snapshots at the right time, batches, losses, schedulers and checkpoints."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_gradguard.callbacks.checkpoints import CheckpointGuard
from lightning_gradguard.callbacks.raised import Drop, RaisedSteps
from lightning_gradguard.callbacks.stand_in import StandIn
from lightning_gradguard.callbacks.trainer import outer_module
from lightning_gradguard.guard.guard import Action, Guard, NonFiniteGradientError
from lightning_gradguard.guard.judge import Judge
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.harmless.part import Part, tell
from lightning_gradguard.incident.blackbox import BlackBox, RunStep
from lightning_gradguard.incident.bundle import IncidentFolder
from lightning_gradguard.incident.fake_trainer import call_training_step, loss_of
from lightning_gradguard.measurement.sharding import is_distributed
from lightning_gradguard.measurement.together import Together
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
    drop_nan_loss: bool = True
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
            drop_nan_loss=self.drop_nan_loss,
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
            averages=averages_of(trainer),
            together=Together(outer_module(trainer, module), told=trainer.world_size == 1),
        )
        # Saving only watches: a recorder that fails is taken away, and the step is dropped all the same.
        self.incidents: BlackBox | None = None
        if options.incident_dir is not None:
            recording = Part("the recorder of incidents", "bad steps are not saved")
            self.incidents = recording.run(make_blackbox, options, trainer, module, self.recovery.together)
        self._module = module
        self._loss: Tensor | None = None
        self._loss_is_old = False
        self._loss_of_batch: Tensor | None = None
        self._stand_ins: list[StandIn] = []
        self._ended_broken = self._told_of_hook = False
        self.raised: RaisedSteps | None = None
        self.let_through = False  # whether the optimizer has been let loose in the batch at hand
        self.dropped = False  # whether the last step of the batch at hand was dropped
        self.window_is_lost = False  # whether a batch of the accumulation under way has raised
        # Methods of Trainer and module have stand-ins until the fit is over, see leave().
        self.checkpoints = CheckpointGuard(trainer, module, self.recovery)
        self._stand_ins += self.checkpoints.stand_ins
        if options.hold_lr_on_skip:
            self._hold_schedulers(trainer)

    def before_batch(self, batch: Any, index: int) -> None:
        """Remembers the batch: for a look if it raises, and where incidents are saved."""
        self.let_through = self.dropped = False
        self._loss_of_batch = None
        if self.raised is not None:
            self.raised.batch = batch
        if self.incidents is not None:
            self.incidents.part.run(self.incidents.before_batch, batch, index)

    def before_backward(self, loss: Tensor, root: Tensor) -> None:
        """Adds up the loss of the step, in real units, from the first one after a step; shows it to the black box.

        Args:
            loss: in real units, detached.
            root: where the backward pass begins.
        """
        # Where processes agree about nothing else, a NaN loss tells the others of itself by the gradients.
        if not self._shows_loss and self.options.drop_nan_loss:
            let_nan_through(root)
        if self.incidents is not None:
            self.incidents.part.run(self.incidents.before_backward, loss)
        # Accumulated losses add up to that of the step; an old one belongs to the step before.
        self._loss = loss if self._loss is None or self._loss_is_old else self._loss + loss
        self._loss_is_old = False
        self._loss_of_batch = loss

    def take_loss(self) -> Tensor | None:
        """The loss since the last optimizer step, where it is to be judged; optimizers in a row share it."""
        self._loss_is_old = True
        if not self._shows_loss:
            self.recovery.tells_by_gradients = self.options.drop_nan_loss
            self.recovery.loss_in_gradients = self._loss
            return None
        return self._loss

    @property
    def _shows_loss(self) -> bool:
        """Whether the loss itself is judged: by one process, or where several agree about something else anyway."""
        # The loss rides in an all-reduce that buffers or spikes need anyway; for itself it makes none.
        spikes = self.options.spikes
        return not self.recovery.together.several or bool(self.recovery.buffers.names or (spikes and spikes.watch_loss))

    def look_at_exceptions(self, trainer: pl.Trainer, drop: Drop) -> None:
        """Has steps that raise because something is not finite dropped from now on."""
        self.raised = RaisedSteps(
            trainer, self._module, drop, self._more_to_look_at, self._was_dropped, self._look_again
        )
        self._stand_ins += self.raised.stand_ins

    def _was_dropped(self, error: Exception) -> bool:
        # Hooks after ours may take it for granted that every parameter has a gradient.
        wants = self.dropped and self._module.automatic_optimization and "NoneType" in str(error)
        judges = [pipeline.judge for pipeline in self.pipelines if isinstance(pipeline.judge, Judge)]
        ended = True in [judge.ends_dropped_step(error, wants_gradients=wants) for judge in judges]  # each of them
        if ended and wants:
            self.tell_of_hook(error, ", for want of the gradients")
        return ended

    def tell_of_hook(self, error: Exception, why: str = "") -> None:
        """Says once that something was raised after its step had been dropped, which ends the step and not the run."""
        if not self._told_of_hook:
            self._told_of_hook = True
            tell(f"{type(error).__name__} after its step was dropped{why}, and the run goes on: {error}")

    def _look_again(self, error: Exception) -> str | None:
        """Runs the step that has raised again, where incidents are saved, which do so as well."""
        if self.incidents is None or self.incidents.part.gone:
            return None
        return self.incidents.find_unnamed(error, self.recovery.buffers.named())

    def _more_to_look_at(self) -> Iterator[tuple[str, Tensor]]:
        spoiled = set(self.recovery.buffers.not_finite())
        yield from ((f"the buffer {name!r}", b) for name, b in self._module.named_buffers() if name in spoiled)
        loss = self._loss_of_batch if self._loss_is_old else self._loss
        if loss is not None:
            yield "the loss", loss

    def lose_window(self) -> None:
        """Takes away what a window of accumulation has left, of which one batch has raised."""
        # As after a dropped step: no gradient, no loss, and the buffers of the last good one.
        self.window_is_lost = False
        self.take_loss()
        self.recovery.buffers.restore_()
        for parameter in self._module.parameters():
            parameter.grad = None
        self.after_step()

    def note_step(self, step: int, record: StepRecord | None, *, moved: bool) -> None:
        """Takes note of what became of a step, and starts a new one with the next batch."""
        self.let_through = self.let_through or moved
        self.dropped = not moved and record is not None and record.step == step and record.cause is not None
        if self.incidents is not None:
            self.after_step()

    def after_step(self) -> None:
        """Starts a new step with the next batch."""
        if self.incidents is not None:
            self.incidents.part.run(self.incidents.after_step)

    def fail(self, trainer: pl.Trainer, exception: BaseException) -> None:
        """Takes note that an exception ends the fit: what is saved from now on is saved because of it.

        Whatever saves after an exception is called after this; then this leaves. A guard's own error comes on every
        process at the same step; with any other nobody waits for the others.
        """
        # Nobody knows whether the other processes raise as well: a collective of ours could wait for ever.
        if not isinstance(exception, NonFiniteGradientError):
            self.recovery.together.leave()
        self.checkpoints.failing = True
        trainer.callbacks.append(_LastToGo(self))  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Takes away what stands in place of methods of Trainer and module.

        But for what looks at what is written, where the run has ended with weights that are not finite: nothing that
        is saved by hand is to hold them, not even with ``weights_only=True``, which asks no callback.
        """
        for stand_in in self._stand_ins:
            if not (self._ended_broken and stand_in is self.checkpoints.at_the_file):
                stand_in.leave()

    def _hold_schedulers(self, trainer: pl.Trainer) -> None:
        def step(step_scheduler: Callable[..., None], scheduler: Any, metric: Any) -> None:
            by_step = any(c.scheduler is scheduler and c.interval == "step" for c in trainer.lr_scheduler_configs)
            dropped = any(p.optimizer is scheduler.optimizer and not p.moved for p in self.pipelines)
            if not (by_step and dropped):
                step_scheduler(scheduler, metric)

        self._stand_ins.append(StandIn(self._module, "lr_scheduler_step", step))

    def end(self) -> None:
        """Looks at the weights that a run ends with: rolls back, or says that they are not finite."""
        # The last step of a run has no next one that would notice what it did to the weights.
        if self.recovery.has_nonfinite_weights():
            if self.recovery.roll_back():
                rank_zero_warn("weights were not finite at the end of the run: rolled back to the last snapshot")
            else:
                self._ended_broken = True
                rank_zero_warn(f"the run ends like this: {self.recovery.remedy_of_nonfinite_weights()}")


def let_nan_through(loss: Tensor) -> None:
    """Makes every gradient NaN where the loss is, so that all processes hear of it when they reduce gradients.

    Costs no all-reduce and no host sync; where the loss is not NaN, gradients stay as they are, to the bit.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> loss = (weight * 2.0).sum() + torch.tensor(float("nan"))
        >>> let_nan_through(loss)
        >>> loss.backward()
        >>> weight.grad
        tensor([nan])
    """
    if loss.requires_grad:
        seen = loss.detach()
        loss.register_hook(lambda gradient: torch.where(seen.isnan(), torch.nan, gradient))


def averages_of(trainer: pl.Trainer) -> list[torch.nn.Module]:
    """The averaged models that callbacks keep beside the model (weight averaging, EMA): they go back with it."""
    found = [vars(callback).get("_average_model") for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return [average for average in found if isinstance(average, torch.nn.Module)]


class _LastToGo(Callback):
    """Stands last in a Trainer's list of callbacks while an exception goes round, and is gone after it."""

    def __init__(self, survival: Survival) -> None:
        self._survival = survival

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        self._survival.leave()


def make_blackbox(
    options: GuardOptions, trainer: pl.Trainer, module: pl.LightningModule, together: Together
) -> BlackBox:
    """Returns the incident recorder of one fit."""
    assert options.incident_dir is not None
    folder = IncidentFolder(options.incident_dir, max_incidents=options.max_incidents, max_bytes=options.max_bytes)
    folder.remove_leftovers()
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
        together=together,
    )


def why_not_in_process(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Tells why the step cannot be run again inside the run; ``None`` where it can."""
    # Running it again would step, or wait for others: it is left to a replay, and the report says why.
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


def _said_of(record: StepRecord) -> str | None:
    """What a bad step was, where it was not the gradients."""
    if record.cause == "spike":
        return record.findings[-1].message
    if record.cause == "loss" and record.nonfinite_layers:
        return "the loss is NaN on one process or more, and gradients by it"
    return {
        "buffer": "the forward pass made buffers non-finite",
        "loss": "the loss is NaN although every gradient is finite",
        "square": f"the gradient of {', '.join(record.nonfinite_layers[:5])} is finite and too large to be squared, "
        "which the optimizer does",
        "exception": "it raised an exception, and something was not finite",
    }.get(record.cause or "")


def announce(record: StepRecord, pipeline: GradientPipeline, *, first: bool, what: str | None = None) -> None:
    """Tells the user of a bad step: the first one, and each that was saved."""
    done = {"rolled_back": "rolled back", "nonfinite": "let through"}.get(record.verdict, "skipped")
    gradients = f"gradients of {', '.join(record.nonfinite_layers[:5])} hold {record.cause}"
    what = what or _said_of(record) or gradients
    saved = f" {pipeline.last_incident}" if pipeline.last_incident else ""
    more = ""
    if first:
        counted = "nonfinite_total of the records" if done == "let through" else "gradguard/skipped_steps"
        more = f" Further ones are counted in {counted} and not announced."
    words = f"step {record.step} was {done}: {what}.{more}{saved}"
    if saved:  # whichever process it was that saved
        warnings.warn(words, stacklevel=2)
    elif first:
        rank_zero_warn(words)
