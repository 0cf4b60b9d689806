"""One fit: the wishes of all our callbacks, joined, and one pipeline for each optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import lightning.pytorch as pl
import rich
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradguard.callbacks.seen import Seen
from lightning_gradguard.callbacks.sinks import LoggerSink, sink_for
from lightning_gradguard.callbacks.survival import GuardOptions, Survival, announce
from lightning_gradguard.callbacks.trainer import (
    is_deepspeed,
    log_engine_norm,
    outer_module,
    refuse_what_cannot_work,
    steps_now,
    warn_if_nothing_was_seen,
)
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.clipper import Policies
from lightning_gradguard.diagnose.diagnosis import Diagnosis, Rule
from lightning_gradguard.harmless.part import Part
from lightning_gradguard.measurement.layout import GroupBy
from lightning_gradguard.measurement.loss_scale import true_loss
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.record import StepRecord
from lightning_gradguard.report.console import summary
from lightning_gradguard.sinks import MemorySink, Sink, Views

P = ParamSpec("P")
T = TypeVar("T")
PolicyMap = Mapping[int | str, ClipPolicy | None]


@dataclass
class Plan:
    """What is to be done in a fit, as our callbacks wrote it down one after the other.

    Attributes:
        contributor: who is writing now, for the error when two want the same.
        roles: who took which role: ``"see"``, ``"tame"``, ``"survive"``.
    """

    contributor: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    probe_every_n_steps: int | None = None
    probe_eagerly: bool = False
    prog_bar: bool = False
    sinks: list[Sink] = field(default_factory=list)
    log_every_n_steps: int | None = None
    group_by: GroupBy = "layer"
    norm_type: float = 2.0
    clip: ClipPolicy | PolicyMap | None = None
    guard: GuardOptions | None = None

    def take(self, role: str) -> None:
        """Takes a role for the callback that is writing now.

        Raises:
            MisconfigurationException: if another callback has it already.
        """
        if role in self.roles:
            raise MisconfigurationException(
                f"{self.roles[role]} and {self.contributor} would both {role} this Trainer's gradients: remove one."
            )
        self.roles[role] = self.contributor


class Session:
    """Runs the pipelines of one fit.

    Args:
        plan: what to do.
        trainer: whose fit it is.
        driver: the callback that forwards the Trainer's hooks.

    Raises:
        MisconfigurationException: if the Trainer clips as well.
    """

    def __init__(self, plan: Plan, trainer: pl.Trainer, driver: Callback) -> None:
        if plan.clip is not None and trainer.gradient_clip_val:
            raise MisconfigurationException(
                f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) and {plan.roles['tame']} would both clip: "
                f"remove gradient_clip_val from the Trainer, or the policy from {plan.roles['tame']}. If you did not "
                "set it, the library that makes the Trainer did (GluonTS sets 10.0): pass gradient_clip_val=None among "
                "the arguments that it hands on to the Trainer, or set trainer.gradient_clip_val = None before fit."
            )
        self.plan = plan
        self.driver = driver
        self.memory = MemorySink(max_records=1000)
        self.diagnoses: list[Diagnosis] = []
        self.seen = Seen(self.memory.records, self.diagnoses)
        self._trainer = weakref.ref(trainer)
        self.pipelines: list[GradientPipeline] = []
        self.instruments: Instruments | None = None
        self.survival: Survival | None = None
        self.views = Views([self.memory])
        self._rows: list[LoggerSink] = []
        self._told_of_skip = False
        self._watching = Part(
            "the watching of gradients", "nothing more is seen of this run's gradients", remove=self.let_go
        )
        self._probing = Part(
            "the set of probes", "rules that need more than gradients stay silent", remove=self._detach_probes
        )
        self._passing_on = Part("the total norm in the Trainer's metrics", "grad_norm_total is not there any more")
        self._ending = Part("the look back at the end", "the run's summary is not shown")

    def is_in_use_beside(self, trainer: pl.Trainer) -> bool:
        """Whether its fit is still running, and is not one of this Trainer's."""
        own = self._trainer()
        return own is not None and own is not trainer and own.state.status == TrainerStatus.RUNNING

    def start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Builds one pipeline for each optimizer; does nothing the second time."""
        if self.pipelines:
            return
        optimizers = trainer.optimizers
        refuse_what_cannot_work(trainer, self.plan, optimizers)
        outer = outer_module(trainer, module)
        further = self._further_views(trainer)
        self.views = Views([self.memory, *further])
        self._rows = [view for view in further if isinstance(view, LoggerSink)]
        if self.plan.probe_every_n_steps is not None:
            every, eagerly = self.plan.probe_every_n_steps, self.plan.probe_eagerly
            self.instruments = self._probing.run(Instruments, module, every, eagerly=eagerly)
        if self.plan.guard is not None and optimizers:
            self.survival = Survival(self.plan.guard, trainer, module)
        policies = policies_by_optimizer(self.plan.clip, optimizers)
        self.pipelines = [
            GradientPipeline(
                outer,
                optimizer,
                clip=policies[index],
                on_nonfinite=self.plan.guard.make_guard() if self.plan.guard else None,
                rules=self.plan.rules,
                sinks=[self.views],
                group_by=self.plan.group_by,
                norm_type=self.plan.norm_type,
                per_layer="see" in self.plan.roles,
                optimizer_index=index,
                num_optimizers=len(optimizers),
                instruments=self.instruments,
                recovery=self.survival.recovery if self.survival else None,
                incidents=self.survival.incidents if self.survival else None,
            )
            for index, optimizer in enumerate(optimizers)
        ]
        self.diagnoses += [pipeline.diagnosis for pipeline in self.pipelines if pipeline.diagnosis is not None]
        if self.survival is not None:
            self.survival.pipelines = self.pipelines

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Calls one of the methods below: under guard, where nothing in this fit acts on gradients."""
        if self.plan.clip is None and self.plan.guard is None:
            return self._watching.run(function, *args, **kwargs)
        return function(*args, **kwargs)

    def _further_views(self, trainer: pl.Trainer) -> list[Sink]:
        if not trainer.is_global_zero:
            return []
        views: list[Sink] = [*self.plan.sinks]
        for logger in trainer.loggers:
            part = Part(f"the view in {type(logger).__name__}", "it gets no records")
            if (view := part.run(sink_for, logger, lambda: trainer.current_epoch)) is not None:
                views.append(view)
        return views

    def before_batch(self, trainer: pl.Trainer, batch: Any, index: int) -> None:
        """Attaches the probes of a sampled step, and remembers the batch, where incidents are saved."""
        for rows in self._rows:
            rows.flush()
        if self.instruments is not None:
            self._probing.run(self.instruments.before_forward, trainer.fit_loop.epoch_loop._batches_that_stepped)
        if self.survival is not None:
            self.survival.before_batch(batch, index)

    def before_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Removes them, and takes note of the loss."""
        loss = true_loss(loss, getattr(trainer.precision_plugin, "scaler", None))
        if self.instruments is not None:
            self._probing.run(self.instruments.after_forward, loss)
        if self.survival is not None:
            self.survival.before_backward(loss)

    def after_step(self, trainer: pl.Trainer) -> None:
        """Measures what the step changed, on sampled steps."""
        if is_deepspeed(trainer):
            self._passing_on.run(log_engine_norm, trainer)
        for pipeline in self.pipelines:
            pipeline.after_step()
        if self.instruments is not None:  # a step without a backward pass has them still attached
            self._probing.run(self.instruments.after_forward)
        comes = trainer._logger_connector.should_update_logs or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        for rows in self._rows:
            rows.wait_for_row() if comes else rows.flush()

    def before_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Runs one optimizer's pipeline, and passes its total norm and its wish to stop on to the Trainer."""
        if getattr(trainer.fit_loop, "_skip_backward", False):
            return  # the last epoch of weight averaging steps without a backward: the gradients are old ones
        pipeline = next((p for p in self.pipelines if p.optimizer is optimizer), None)
        if pipeline is None or not steps_now(trainer):
            return
        # The x-axis of the user's own metrics. trainer.global_step counts every optimizer, so with two of them it
        # would run twice as fast as the losses beside it.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        every = self.plan.log_every_n_steps
        log = trainer._logger_connector.should_update_logs if every is None else (step + 1) % every == 0
        log = log or is_last_step(trainer)  # what the window has folded since the last record is not lost
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = self.survival.take_loss() if self.survival else None
        record = pipeline.before_step(step=step, log=log, scaler=scaler, loss=loss)
        if self.survival is not None:
            self.survival.after_step()
        self._passing_on.run(self._pass_on, trainer, pipeline, record)
        if pipeline.should_stop:
            trainer.should_stop = True
        if record is not None and record.verdict in ("skipped", "rolled_back"):
            announce(record, pipeline, first=not self._told_of_skip)
            self._told_of_skip = True

    def _pass_on(self, trainer: pl.Trainer, pipeline: GradientPipeline, record: StepRecord | None) -> None:
        if pipeline.total_norm is None:
            return
        name = "grad_norm_total" if len(self.pipelines) == 1 else f"grad_norm_total/opt{pipeline.optimizer_index}"
        # Into the dict itself: the property would gather anew all that the user has logged, at every step.
        trainer._logger_connector._callback_metrics[name] = pipeline.total_norm
        if record is not None and self.plan.prog_bar:
            trainer.progress_bar_metrics[name] = record.total_norm

    def print_summary(self, trainer: pl.Trainer) -> None:
        """Prints layers, norms and findings where the Trainer shows its progress, if layers were watched."""
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            self._ending.run(self._print_summary)

    def _print_summary(self) -> None:
        if any(record.layers for record in self.memory.records):
            rich.print(summary(self.memory.records, self.seen.findings))

    def end(self, trainer: pl.Trainer) -> None:
        """Says if nothing was seen."""
        self._ending.run(warn_if_nothing_was_seen, trainer)

    def fail(self, trainer: pl.Trainer) -> None:
        """Leaves Trainer, module and optimizers as they were found, in the middle of a step perhaps."""
        self.let_go()
        for pipeline in self.pipelines:
            pipeline.judge.end_step()
        if self.survival is not None:
            self.survival.fail(trainer)

    def leave(self) -> None:
        """Leaves Trainer and module as they were found, at the end of the fit."""
        self.let_go()
        if self.survival is not None:
            self.survival.leave()

    def let_go(self) -> None:
        """Takes the hooks off the model, and ends every view, whatever happened."""
        self._detach_probes()
        self.views.close()

    def _detach_probes(self) -> None:
        if self.instruments is not None:
            self.instruments.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state of each pipeline, by optimizer index."""
        return self.run(self._states) or {}

    def _states(self) -> dict[str, Any]:
        return {str(p.optimizer_index): p.state_dict() for p in self.pipelines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each pipeline its state back."""
        self.run(self._load, state)

    def _load(self, state: Mapping[str, Any]) -> None:
        for pipeline in self.pipelines:
            own = state.get(str(pipeline.optimizer_index))
            if own is None:
                rank_zero_warn(
                    f"the checkpoint knows no optimizer {pipeline.optimizer_index}: its statistics start fresh"
                )
            else:
                pipeline.load_state_dict(own)


def is_last_step(trainer: pl.Trainer) -> bool:
    """Whether training ends after this step, as far as it is known beforehand."""
    last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    return (last_epoch and trainer.is_last_batch) or trainer.global_step + 1 == trainer.max_steps


def policies_by_optimizer(
    clip: ClipPolicy | PolicyMap | None, optimizers: Sequence[Optimizer]
) -> list[Policies | None]:
    """Sorts a policy, or a mapping by optimizer index or parameter-group name, to the optimizers.

    Raises:
        MisconfigurationException: if a key names no optimizer and no parameter group.
    """
    if clip is None or isinstance(clip, ClipPolicy):
        return [clip] * len(optimizers)
    groups = [[str(group["name"]) for group in o.param_groups if "name" in group] for o in optimizers]
    for key in clip:
        known = key in range(len(optimizers)) if isinstance(key, int) else any(key in names for names in groups)
        if not known:
            raise MisconfigurationException(
                f"the clipping policies name {key!r}: neither an optimizer (indices 0 to {len(optimizers) - 1}) nor "
                f"a parameter group (names: {sorted({n for names in groups for n in names}) or 'none are given'})."
            )
    result: list[Policies | None] = []
    for index, names in enumerate(groups):
        by_group = {key: policy for key, policy in clip.items() if isinstance(key, str) and key in names}
        if index in clip and by_group:
            raise MisconfigurationException(
                f"the clipping policies name optimizer {index} and its parameter groups {sorted(by_group)}: choose one."
            )
        result.append(clip.get(index, by_group or None))
    return result
