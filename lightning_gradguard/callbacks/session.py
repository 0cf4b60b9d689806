"""One fit: the wishes of all our callbacks, joined, and one pipeline for each optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradguard.callbacks.console import say, width
from lightning_gradguard.callbacks.ending import tell_the_end
from lightning_gradguard.callbacks.folders import run_folder
from lightning_gradguard.callbacks.idle import warn_of_idle_settings
from lightning_gradguard.callbacks.optimizer_calls import OptimizerCalls, anything_is_compiled, has_compiled_step
from lightning_gradguard.callbacks.seen import Seen
from lightning_gradguard.callbacks.sinks import LoggerSink, sinks_for
from lightning_gradguard.callbacks.survival import GuardOptions, Survival, announce
from lightning_gradguard.callbacks.trainer import (
    changed_afterwards,
    is_deepspeed,
    log_engine_norm,
    outer_module,
    refuse_what_cannot_work,
    steps_now,
    steps_parameters_of,
    steps_without_backward,
)
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.clipper import Policies, warn_of_waiting
from lightning_gradguard.diagnose.diagnosis import Diagnosis, Rule
from lightning_gradguard.guard.judge import Judge
from lightning_gradguard.harmless.part import Part, tell
from lightning_gradguard.measurement.layout import GroupBy, check_owner
from lightning_gradguard.measurement.loss_scale import true_loss
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.record import StepRecord
from lightning_gradguard.recording.views import Views
from lightning_gradguard.report.live import ConsoleSink
from lightning_gradguard.report.names import RECORDS_NAME
from lightning_gradguard.report.records_file import RecordsFile
from lightning_gradguard.sinks import MemorySink, Sink

P = ParamSpec("P")
T = TypeVar("T")
PolicyMap = Mapping[int | str, ClipPolicy | None]


@dataclass
class Plan:
    """What is to be done in a fit, as our callbacks wrote it down one after the other.

    Attributes:
        contributor: who is writing now, for the error when two want the same.
        roles: who took which role: ``"see"``, ``"tame"``, ``"survive"``.
        joint: whether the optimizers are taken as one.
        dry_run: whether policies decide and clip nothing.
    """

    contributor: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    silence: Sequence[str] = ()
    probe_every_n_steps: int | None = None
    probe_eagerly: bool = False
    prog_bar: bool = False
    sinks: list[Sink] = field(default_factory=list)
    log_every_n_steps: int | None = None
    group_by: GroupBy = "layer"
    norm_type: float = 2.0
    clip: ClipPolicy | PolicyMap | None = None
    guard: GuardOptions | None = None
    dry_run: bool = False
    joint: bool = False
    verbose: bool = True
    keep_records: bool = True

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

    @property
    def acting(self) -> tuple[str, ...]:
        """Returns the roles taken that change a gradient; what only watches is none of them."""
        # A policy in a dry run decides, and changes nothing.
        acts = {"tame": not self.dry_run, "survive": True}
        return tuple(role for role in acts if role in self.roles and acts[role])

    def without(self, roles: Sequence[str]) -> Plan:
        """Returns a plan that leaves these acting roles out."""
        return replace(
            self,
            roles={role: who for role, who in self.roles.items() if role not in roles},
            clip=None if "tame" in roles else self.clip,
            guard=None if "survive" in roles else self.guard,
        )


class Session:
    """Runs the pipelines of one fit.

    Args:
        plan: what to do.
        trainer: whose fit it is.
        driver: the callback that forwards the Trainer's hooks.
    """

    def __init__(self, plan: Plan, trainer: pl.Trainer, driver: Callback) -> None:
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
        self._further: list[Sink] = []
        self.console: ConsoleSink | None = None
        self._told_of_skip = False
        self._told_skipped: dict[str, int] = {}  # the counts that stand in the Trainer's metrics
        self._told_of_strangers = False
        self._told_of_functions = self._told_of_closures = self._is_kept_out = False  # the latter: out of compiled code
        self._after_us: list[str] = []  # who may change gradients after us; emptied once it is said that somebody did
        self.calls: OptimizerCalls | None = None
        self._outer: nn.Module | None = None
        self._has_engine = self._strategy_accumulates = False  # what the strategy does itself
        self._holds = False
        self._precision: Any = None  # the Trainer's plug-in, which has the loss scaler
        self._stepped: set[int] = set()  # of several optimizers that are taken as one, those of the step at hand
        self._watching = Part(
            "the watching of gradients", "nothing more is seen of this run's gradients", remove=self.let_go
        )
        self._probing = Part(
            "the set of probes", "rules that need more than gradients stay silent", remove=self._detach_probes
        )
        self._passing_on = Part("the total norm in the Trainer's metrics", "grad_norm_total is not there any more")
        self._ending = Part("the look back at the end", "the run's summary is not shown")

    def is_in_use_beside(self, trainer: pl.Trainer) -> bool:
        """Tells whether its fit is still running, and is not one of this Trainer's."""
        own = self._trainer()
        return own is not None and own is not trainer and own.state.status == TrainerStatus.RUNNING

    def start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Builds one pipeline for each optimizer; does nothing the second time."""
        if self.pipelines:
            return
        optimizers = trainer.optimizers
        refuse_what_cannot_work(trainer, self.plan, optimizers)
        warn_of_idle_settings(trainer, module, self.plan)
        outer = outer_module(trainer, module)
        self._has_engine = is_deepspeed(trainer)
        self._strategy_accumulates = trainer.strategy.handles_gradient_accumulation
        further = self._further = self._further_views(trainer)
        self.views = Views([self.memory, *further])
        self._rows = [view for view in further if isinstance(view, LoggerSink)]
        if self.plan.probe_every_n_steps is not None:
            every, eagerly = self.plan.probe_every_n_steps, self.plan.probe_eagerly
            self.instruments = self._probing.run(Instruments, module, every, eagerly=eagerly)
            clips = trainer.gradient_clip_algorithm in (None, "norm") and trainer.gradient_clip_val
            if self.instruments is not None and clips:
                self.instruments.clip_outside = float(clips)
        self._precision = trainer.precision_plugin
        if anything_is_compiled() or any(map(has_compiled_step, optimizers)):
            self._look_for_compiled_steps(trainer)
        if self.plan.guard is not None and optimizers:
            self.survival = Survival(self.plan.guard, trainer, module)
        self._outer = outer
        ours = [c for c in trainer.callbacks if getattr(c, "_session", None) is self]  # type: ignore[attr-defined]
        self._after_us = changed_afterwards(trainer, module, ours)
        self._holds = bool(self._after_us)
        each: list[list[Optimizer]] = [list(optimizers)] if self.plan.joint else [[one] for one in optimizers]
        policies = policies_by_optimizer(self.plan.clip, each)
        self.pipelines = [self._make_pipeline(i, o, policies[i], len(each)) for i, o in enumerate(each) if o]
        if len(each) > 1 and (waiting := self._waiting_groups()):
            warn_of_waiting(waiting, self._groups())
        if self.survival is not None:
            self.survival.pipelines = self.pipelines
            self.survival.look_at_exceptions(trainer, lambda what, error: self._drop_raised(trainer, what, error))
        if not self._has_engine:
            handed = self._hand_over if self._holds else None
            self.calls = OptimizerCalls(lambda one: steps_parameters_of(module, one), self._asked(), handed)
            self.calls.start()

    def _look_for_compiled_steps(self, trainer: pl.Trainer) -> None:
        """Stays out of the compiled step of an optimizer, in which Lightning runs the forward pass and calls us."""
        # Or of whatever else was compiled and calls us. Where nothing was, hooks are called as they are.
        if not self._is_kept_out:
            self._is_kept_out = True
            self.run = torch.compiler.disable(self.run)  # type: ignore[method-assign]
        # Under manual optimization a compiled part of the training step may run the backward pass, and step.
        by_hand = not trainer.lightning_module.automatic_optimization
        if self.instruments is not None and (by_hand or any(map(has_compiled_step, trainer.optimizers))):
            if not self._told_of_functions:
                self._told_of_functions = True
                say(
                    "info",
                    "GradGuard: something is compiled here, and may run the backward pass: activations and losses that "
                    "are applied as functions are not looked at, those that are modules are.",
                )
            self.instruments.leave_functions_out()

    def _asked(self) -> str:
        """Returns what was asked for, in words."""
        words = {"see": "seen", "tame": "clipped", "survive": "guarded"}
        asked = [word for role, word in words.items() if role in self.plan.roles]
        return " or ".join([", ".join(asked[:-1]), asked[-1]] if len(asked) > 1 else asked)

    def _make_pipeline(
        self, index: int, optimizers: list[Optimizer], clip: Policies | None, num_optimizers: int
    ) -> GradientPipeline:
        # An optimizer of another model is said, and refused only in a plain loop: here the Trainer steps it anyway.
        assert self._outer is not None
        self._warn_of_strangers(self._outer, Optimizers(optimizers))
        pipeline = GradientPipeline(
            self._outer,
            optimizers,
            clip=clip,
            on_nonfinite=self.plan.guard.make_guard() if self.plan.guard else None,
            rules=self.plan.rules,
            silence=self.plan.silence,
            sinks=[self.views],
            group_by=self.plan.group_by,
            norm_type=self.plan.norm_type,
            per_layer="see" in self.plan.roles,
            optimizer_index=index,
            num_optimizers=num_optimizers,
            must_own=False,
            instruments=self.instruments,
            recovery=self.survival.recovery if self.survival else None,
            incidents=self.survival.incidents if self.survival else None,
            dry_run=self.plan.dry_run,
        )
        pipeline.holds = self._holds
        pipeline.counts_closures = False  # the session does, for manual optimization, too
        if pipeline.diagnosis is not None:
            self.diagnoses.append(pipeline.diagnosis)
        return pipeline

    def _warn_of_strangers(self, module: nn.Module, optimizers: Optimizers) -> None:
        """Says once that an optimizer holds nothing of the model: the run goes on, and the rules speak of it."""
        try:
            check_owner(module, optimizers)
        except ValueError as error:
            if not self._told_of_strangers:
                rank_zero_warn(f"{error}. The run goes on; its weights will not move.")
            self._told_of_strangers = True

    def _pipeline_of(self, trainer: pl.Trainer, optimizer: Optimizer) -> GradientPipeline | None:
        """The pipeline of the optimizer that is about to step; one that was made anew takes over from the one before.

        ``None`` for an optimizer that none of the Trainer's has become: of another model, say.
        """
        if self.plan.joint and self.pipelines:
            now = trainer.optimizers
            if any(optimizer is one for one in now):
                # All of them are one: it follows before the first of them steps, also where one has come or gone.
                if not self.pipelines[0].optimizers.are(now):
                    self.pipelines[0].follow(now)
                    self._stepped = set()
                return self.pipelines[0]
        for pipeline in self.pipelines:
            if optimizer in pipeline.optimizers:
                return pipeline
        # Nobody has it: it was made anew. Its place among the Trainer's optimizers tells whose place it takes.
        place = next((index for index, one in enumerate(trainer.optimizers) if optimizer is one), None)
        if place is not None and place < len(self.pipelines):
            self.pipelines[place].follow(optimizer)
            return self.pipelines[place]
        if self._outer is None or not steps_parameters_of(self._outer, optimizer):
            return None
        # One more than there were: it is watched from now on, clipped only if one policy was meant for all of them.
        clip = self.plan.clip if isinstance(self.plan.clip, ClipPolicy) else None
        index = len(self.pipelines) if place is None else place
        self.pipelines.append(self._make_pipeline(index, [optimizer], clip, len(self.pipelines) + 1))
        return self.pipelines[-1]

    def _begins(self, pipeline: GradientPipeline, optimizer: Optimizer) -> bool:
        """Tells whether this step begins a step of all, where several optimizers are taken as one."""
        begins = not self._stepped or id(optimizer) in self._stepped
        self._stepped = {id(optimizer)} if begins else self._stepped | {id(optimizer)}
        if len(self._stepped) == len(pipeline.optimizers.plain):
            self._stepped = set()
        return begins

    def _waiting_groups(self) -> list[str]:
        """Parameter groups that have a policy, and that no optimizer has."""
        present = self._groups()
        return sorted({name for p in self.pipelines for name in p.waiting_groups} - set(present))

    def _groups(self) -> list[str]:
        return [name for pipeline in self.pipelines for name in pipeline.layout.group_names]

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Calls one of the methods below: under guard, where nothing in this fit acts on gradients."""
        if (self.plan.clip is None or self.plan.dry_run) and self.plan.guard is None:
            return self._watching.note(function, *args, **kwargs)  # records no graph, as where we act
        return function(*args, **kwargs)

    def _further_views(self, trainer: pl.Trainer) -> list[Sink]:
        # Every process has the same records; one of them writes.
        if not trainer.is_global_zero:
            return []
        views: list[Sink] = [*self.plan.sinks]
        # Whatever a logger of somebody else raises costs its own view and no other.
        for logger in trainer.loggers:
            part = Part(f"the view in {type(logger).__name__}", "it gets no records")
            views += part.run(sinks_for, logger, lambda: trainer.current_epoch) or []
        folder = run_folder(trainer) if self.plan.keep_records else None
        if folder is not None:
            views.append(RecordsFile(folder / RECORDS_NAME))
        if self.plan.verbose and not trainer.barebones:
            self.console = ConsoleSink(say, width())
            views.append(self.console)
        return views

    def before_batch(self, trainer: pl.Trainer, batch: Any, index: int) -> None:
        """Attaches the probes of a sampled step, and remembers the batch, where incidents are saved."""
        # A row that waited for the user's metrics of the last step has had its chance.
        for rows in self._rows:
            rows.flush()
        if anything_is_compiled():  # when the fit has begun, perhaps
            self._look_for_compiled_steps(trainer)
        if self.instruments is not None:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self._probing.note(self.instruments.before_forward, step, batch, index, trainer.current_epoch)
        if self.survival is not None:
            if index == 0 and steps_without_backward(trainer):
                self.survival.recovery.buffers.keep()  # they have just been reset
            self.survival.before_batch(batch, index)

    def before_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Removes them, and takes note of the loss."""
        # The backward pass begins at the scaled loss, and what is told is the loss without the scale.
        root, loss = loss, true_loss(loss, getattr(self._precision, "scaler", None))
        if self.instruments is not None:
            self._probing.note(self.instruments.after_forward, loss, root)
        if self.survival is not None:
            self.survival.before_backward(loss, root)

    def after_step(self, trainer: pl.Trainer) -> None:
        """Measures what the step changed, on sampled steps."""
        if self._has_engine:
            self._passing_on.run(log_engine_norm, trainer)
        for pipeline in self.pipelines:
            pipeline.after_step()
        if self.instruments is not None and self.instruments.sampling:  # without a backward pass they still hang there
            self._probing.note(self.instruments.after_forward)
        if self._rows:
            # Where the user's metrics are written after this batch, ours wait for them: a row is one row.
            comes = trainer._logger_connector.should_update_logs or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
            for rows in self._rows:
                rows.wait_for_row() if comes else rows.flush()

    def before_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Runs one optimizer's pipeline, and passes its total norm and its wish to stop on to the Trainer."""
        if self.calls is not None and self.calls.saw(optimizer) > 1:
            self._meet_second_closure(optimizer)
        if steps_without_backward(trainer):
            if self.survival is not None:
                self.survival.recovery.overflow_step()  # its forward passes count, unless one has spoiled a buffer
            return
        pipeline = self._pipeline_of(trainer, optimizer)
        several = pipeline is not None and len(pipeline.optimizers.plain) > 1
        if pipeline is not None and self.calls is not None:
            pipeline.steps_elsewhere = self.calls.met_unseen
        if (
            pipeline is None
            or (self._strategy_accumulates and not steps_now(trainer))
            or (several and not self._begins(pipeline, optimizer))
        ):
            return
        if self.survival is not None and self.survival.window_is_lost:
            self.survival.lose_window()
            return
        # The x-axis of the user's own metrics. trainer.global_step counts every optimizer, so with two of them it
        # would run twice as fast as the losses beside it.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        scaler = getattr(self._precision, "scaler", None)
        loss = self.survival.take_loss() if self.survival else None
        record = pipeline.before_step(
            step=step,
            log=self._is_due(trainer, pipeline, step),
            scaler=scaler,
            loss=loss,
            stepping=optimizer if several else None,
        )
        if self.survival is not None:
            self.survival.note_step(step, record, moved=pipeline.judge.moved)
        self._passing_on.note(self._pass_on, trainer, pipeline, record)
        if pipeline.judge.should_stop:
            trainer.should_stop = True
        if record is not None:
            self._announce_bad(record, pipeline)

    def _announce_bad(self, record: StepRecord, pipeline: GradientPipeline) -> None:
        """Says what became of a step that was not finite."""
        let_through = record.verdict == "nonfinite" and self.survival is not None
        if let_through or record.verdict in ("skipped", "rolled_back"):
            announce(record, pipeline, first=not self._told_of_skip)
            self._told_of_skip = True

    def _meet_second_closure(self, optimizer: Optimizer) -> None:
        """Refuses to guard an optimizer that asks for gradients again within one step; says so where nobody guards.

        Raises:
            MisconfigurationException: if the fit is guarded.
        """
        # The first evaluation was guarded, and the weights have moved by it before the second came.
        name = type(optimizer).__name__
        again = f"{name} asks for gradients several times within one step (its closure was called again)"
        if self.plan.guard is not None:
            raise MisconfigurationException(
                f"{self.plan.roles['survive']}: {again}, and has moved the weights by the time a gradient is not "
                "finite: a step cannot be dropped half way. Remove the guard, or use another optimizer."
            )
        if not self._told_of_closures:
            clips = "each of them is clipped, and " if self.plan.clip is not None else ""
            tell(f"{again}: {clips}a record shows the first of each batch and counts all of them.")
        self._told_of_closures = True

    def _hand_over(self, optimizer: Optimizer) -> None:
        """Completes the record of a step, now that all who may change its gradients have done so; says if they did."""
        pipeline = next((one for one in self.pipelines if optimizer in one.optimizers), None)
        if pipeline is None or not self.run(pipeline.hand_over, optimizer):
            return
        # Said once, and only where it matters: who merely watches has the right figure in the record already.
        if self.plan.clip is not None and not self.plan.dry_run and self._after_us:
            rank_zero_warn(
                f"{self.plan.roles['tame']} clips before {' and '.join(self._after_us)}, and gradients are changed "
                "once more after it: what the optimizer gets is not what the policy left (post_clip tells it)."
            )
            self._after_us = []

    def _drop_raised(self, trainer: pl.Trainer, what: str, error: Exception) -> str | None:
        """Drops a step that has raised because something was not finite; returns why not, where it cannot."""
        survival, module = self.survival, trainer.lightning_module
        assert survival is not None
        self._detach_probes()
        if survival.window_is_lost:
            return None
        if survival.dropped and module.automatic_optimization:  # it is in the records: a hook has raised after that
            survival.tell_of_hook(error)
            scaler = getattr(self._precision, "scaler", None)
            if scaler is not None and not any(pipeline.judge.has_told_optimizer for pipeline in self.pipelines):
                scaler.update()  # it would have dropped the step itself, and must lower its scale
            for pipeline in self.pipelines:
                pipeline.judge.end_step()
            return None
        # Which optimizer would have stepped is not known: the first one stands for the batch.
        pipeline = self.pipelines[0]
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if survival.recovery.together.several:
            survival.recovery.together.leave()
            saved = (
                pipeline.judge.save_raised(step, pipeline.layout, error) if isinstance(pipeline.judge, Judge) else ""
            )
            return f"Under several processes such a step is not dropped: others may be half way through it. {saved}"
        moved = survival.let_through and not survival.recovery.roll_back()
        record = pipeline.drop_raised(f"{what} ({type(error).__name__})", step=step, error=error)
        survival.take_loss()
        survival.after_step()
        if not module.automatic_optimization:
            return "Under manual optimization half a step may have been taken, so it is not dropped."
        if moved:
            return "The optimizer has begun its step, so it cannot be dropped."
        # Of a window of accumulation the other batches run, and the step at its end is left out.
        survival.window_is_lost = trainer.fit_loop._should_accumulate()
        trainer.should_stop = trainer.should_stop or pipeline.should_stop
        self._passing_on.note(self._pass_on, trainer, pipeline, record)
        if record is not None:
            announce(record, pipeline, first=not self._told_of_skip, what=f"{type(error).__name__}, and {what}")
            self._told_of_skip = True
        return None

    def _is_due(self, trainer: pl.Trainer, pipeline: GradientPipeline, step: int) -> bool:
        """Tells whether this step makes a record.

        Its first step does, and the last one of the run; then those beside the user's metrics, where the optimizer
        steps at such a batch, and else the first that lies as far from the last record as records are asked for.
        Several steps in one batch make one record: they have one place on the x-axis.
        """
        every, stops = self.plan.log_every_n_steps, False
        if every is None:
            every, stops = trainer.log_every_n_steps, trainer.should_stop  # type: ignore[attr-defined]
        last = pipeline.last_recorded
        if not every or last == step:
            return False
        beside = (step + 1) % every == 0 or stops
        return beside or last is None or step - last >= every or is_last_step(trainer)

    def _pass_on(self, trainer: pl.Trainer, pipeline: GradientPipeline, record: StepRecord | None) -> None:
        """Puts the total norm and the count of dropped steps where callbacks monitor metrics.

        The norm is that of the last step which was let through: a NaN would end ``EarlyStopping`` for a step that the
        guard has already dealt with.
        """
        if pipeline.total_norm is None:
            return
        one = len(self.pipelines) == 1
        of_which = "" if one else f"/opt{pipeline.optimizer_index}"
        name = f"grad_norm_total{of_which}"
        # Into the dict itself: the property would gather anew all that the user has logged, at every step.
        metrics = trainer._logger_connector._callback_metrics
        if pipeline.judge.moved:
            metrics[name] = pipeline.total_norm
        elif name not in metrics:
            metrics[name] = torch.zeros_like(pipeline.total_norm)  # nothing was applied yet
        if self.survival is not None:
            name_of_count, skipped = f"gradguard/skipped_steps{of_which}", pipeline.counters.skipped
            if name_of_count not in metrics or self._told_skipped.get(name_of_count) != skipped:
                metrics[name_of_count] = torch.tensor(float(skipped), device="cpu")
                self._told_skipped[name_of_count] = skipped
        if record is not None and pipeline.judge.moved and self.plan.prog_bar:
            trainer.progress_bar_metrics[name] = record.total_norm

    def tell_the_end(self, trainer: pl.Trainer, exception: BaseException | None = None) -> None:
        """Says how the run went, however it ended."""
        self._ending.run(self._tell_the_end, trainer, exception)

    def _tell_the_end(self, trainer: pl.Trainer, exception: BaseException | None) -> None:
        if self.console is not None:
            incidents = self.survival.incidents if self.survival else None
            bundles = incidents.folder.saved if incidents else []
            tell_the_end(self.console, self.pipelines, self._further, bundles, trainer, exception)

    def end(self) -> None:
        """Says what never came, and makes a last record of what was folded since the one before."""
        self._ending.run(self._end)

    def _end(self) -> None:
        if self.survival is not None:
            self.survival.end()
        if waiting := self._waiting_groups():
            warn_of_waiting(waiting, self._groups(), at_the_end=True)
        for pipeline in self.pipelines:
            pipeline.flush()

    def fail(self, trainer: pl.Trainer, exception: BaseException) -> None:
        """Leaves Trainer, module and optimizers as they were found, in the middle of a step perhaps."""
        self.let_go()
        for pipeline in self.pipelines:
            pipeline.judge.end_step()
        if self.survival is not None:
            self.survival.fail(trainer, exception)

    def leave(self) -> None:
        """Leaves Trainer and module as they were found, at the end of the fit."""
        self.let_go()
        if self.survival is not None:
            self.survival.leave()

    def let_go(self) -> None:
        """Takes the hooks off the model, and ends every view, whatever happened."""
        self._probing.run(self._detach_probes)
        if self.calls is not None:
            self.calls.stop()
        self.views.close()

    def _detach_probes(self) -> None:
        if self.instruments is not None:
            self.instruments.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each pipeline, by optimizer index."""
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
    """Tells whether training ends after this step, as far as it is known beforehand."""
    # Asked at every step, so the cheap questions come first: counting steps asks every optimizer's progress.
    loop = trainer.fit_loop.epoch_loop
    if loop.max_steps > 0 and loop.global_step + 1 == loop.max_steps:
        return True
    return (
        loop.batch_progress.is_last_batch
        and trainer.max_epochs is not None
        and trainer.current_epoch + 1 == trainer.max_epochs
    )


def policies_by_optimizer(
    clip: ClipPolicy | PolicyMap | None, optimizers: Sequence[Sequence[Optimizer]]
) -> list[Policies | None]:
    """Sorts a policy, or a mapping by optimizer index or parameter-group name, to the optimizers.

    A name that no parameter group has is that of one that comes later, to whichever optimizer.

    Args:
        clip: what the user gave.
        optimizers: those of each pipeline.

    Raises:
        MisconfigurationException: if an index names no optimizer.
    """
    if clip is None or isinstance(clip, ClipPolicy):
        return [clip] * len(optimizers)
    groups = [[str(g["name"]) for o in each for g in o.param_groups if "name" in g] for each in optimizers]
    known = {name for names in groups for name in names}
    for key in clip:
        if isinstance(key, int) and key not in range(len(optimizers)):
            raise MisconfigurationException(
                f"the clipping policies name {key!r}: neither an optimizer (indices 0 to {len(optimizers) - 1}) nor "
                f"a parameter group (names: {sorted({n for names in groups for n in names}) or 'none are given'})."
            )
    result: list[Policies | None] = []
    for index, names in enumerate(groups):
        by_group = {
            key: policy for key, policy in clip.items() if isinstance(key, str) and (key in names or key not in known)
        }
        if index in clip and any(key in names for key in by_group):
            raise MisconfigurationException(
                f"the clipping policies name optimizer {index} and its parameter groups {sorted(by_group)}: choose one."
            )
        result.append(clip.get(index, by_group or None))
    return result
