"""One optimizer's gradients, step by step: measure, guard, clip, diagnose, record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.arguments import check_count
from lightning_gradguard.clip.clipper import Clipper, Clips, Policies, leave_alone, warn_of_waiting
from lightning_gradguard.diagnose import default_rules
from lightning_gradguard.diagnose.diagnosis import Diagnosis, Rule
from lightning_gradguard.guard.asked import times_asked
from lightning_gradguard.guard.guard import Action, Guard, check_droppable
from lightning_gradguard.guard.judge import Judge, Unguarded
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.guard.verdict import Dropped, Judgement, Over, Passed
from lightning_gradguard.harmless.part import Part, is_ours, tell
from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.measurement.layout import GroupBy, Layout, check_owner
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.needs import NOTHING
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.measurement.sharded import find_sharding
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.probes.sampled import EARLY, next_early
from lightning_gradguard.record import StepRecord
from lightning_gradguard.recording.build import View, build_record, no_step_record
from lightning_gradguard.recording.handed import Held
from lightning_gradguard.recording.since_last import Counters, SinceLast, Totals
from lightning_gradguard.recording.views import Views
from lightning_gradguard.sinks import Sink


class GradientPipeline:
    """Watches, clips and guards the gradients of one optimizer, between ``backward()`` and ``optimizer.step()``.

    This is the whole library without Lightning: the callbacks run one pipeline for each optimizer. Whatever happens to
    the optimizer under way (groups added, parameters replaced, resized or removed) is followed at that very step; what
    is known of parameters by name stays. Used as a context manager it closes its sinks at the end.

    Args:
        module: where parameter names come from.
        optimizer: whose parameters to watch; nothing else is touched. A list of optimizers that step together (Muon for
            matrices, AdamW for the rest) is taken as one: one norm, one decision, one record. Wrappers (Fabric's,
            accelerate's, Lookahead) are looked through.
        clip: a policy, a mapping from parameter-group name to policy, or ``None`` to leave gradients alone. The policy
            of a group that does not exist yet waits for it.
        on_nonfinite: ``"skip"``, ``"rollback"``, ``"stop"`` or ``"raise"``, or a
            :class:`~lightning_gradguard.guard.guard.Guard` with more settings; ``None`` watches only.
        patience: bad steps in a row before every action raises; for a word, not for a ``Guard``.
        rules: diagnosis rules, looked at on logged steps; ``None`` for the shipped set, ``[]`` for none.
        silence: ids of rules to leave out.
        sinks: views that get the records.
        log_every_n_steps: how often a record is made; a bad step always makes one. 50, as the Trainer's.
        group_by: ``"layer"`` or ``"parameter"``.
        norm_type: p of the layer norms in records; all else is l2.
        per_layer: whether records hold layers, or totals only.
        optimizer_index: which optimizer this is, for the record.
        num_optimizers: how many there are.
        handed_on: whether the gradients are handed to the optimizer as they are when :meth:`before_step` returns; if
            something clips them after it, records do not claim to know the norm after clipping.
        must_own: whether an optimizer that holds no parameter of the module is refused, as one that was made for a copy
            of it; else it is watched, and has no gradient.
        instruments: probes of activations, updates and time, for the rules that need more than gradients; shared by
            the pipelines of a model. See :class:`~lightning_gradguard.probes.probes.Instruments` for the calls
            around the forward pass.
        recovery: what puts buffers and weights back, shared by the pipelines of a model; made if not given.
        incidents: saves bad steps for replay, shared by the pipelines of a model; ``None`` saves nothing.
        dry_run: whether the policy decides and nothing is clipped: gradients are those of a run that is only watched,
            records tell what it would have done. A policy that fails is then taken away, and the run goes on.

    Attributes:
        total_norm: of the last step before clipping, on the device; ``None`` before the first.
        last_recorded: step of the last record that was not an early one; ``None`` before the first.
        diagnosis: what the rules found so far, or ``None`` without rules.
        judge: what drops bad steps; without ``on_nonfinite`` it lets every step through.
        holds: whether the record of a step that is let through waits for :meth:`hand_over`.
        steps_elsewhere: whether somebody else is known to step these parameters, so that no missing step is told of.
        counts_closures: whether it looks by itself for an optimizer that asks for gradients again within one step.

    Raises:
        TypeError, ValueError: for bad arguments; the message says what was got and what to do.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline, NormClip
        >>> net = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> pipeline = GradientPipeline(net, optimizer, clip=NormClip(1.0), on_nonfinite="skip", log_every_n_steps=1)
        >>> net(torch.ones(8, 4)).square().mean().backward()
        >>> record = pipeline.before_step()
        >>> optimizer.step()
        >>> record.verdict in ("ok", "clipped")
        True
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        clip: Policies | None = None,
        on_nonfinite: Action | Guard | None = None,
        patience: int = 20,
        rules: Sequence[Rule] | None = None,
        silence: Sequence[str] = (),
        sinks: Sequence[Sink] = (),
        log_every_n_steps: int = 50,
        group_by: GroupBy = "layer",
        norm_type: float = 2.0,
        per_layer: bool = True,
        optimizer_index: int = 0,
        num_optimizers: int = 1,
        handed_on: bool = True,
        must_own: bool = True,
        instruments: Instruments | None = None,
        recovery: Recovery | None = None,
        incidents: BlackBox | None = None,
        dry_run: bool = False,
    ) -> None:
        check_count(log_every_n_steps, "log_every_n_steps")
        guard = Guard(on_nonfinite, patience) if isinstance(on_nonfinite, str) else on_nonfinite
        self.module = module
        self.optimizers = Optimizers(optimizer)
        if must_own:
            check_owner(module, self.optimizers)
        self.judge: Judge | Unguarded = Unguarded()
        if guard is not None:
            check_droppable(self.optimizers)
            recovery = recovery or Recovery(module, self.optimizers.plain, rollback=guard.action == "rollback")
            self.judge = Judge(guard, recovery, self.optimizers, optimizer_index, incidents)
        # From here on everything only looks: it may fail, and is taken away then.
        rules = default_rules() if rules is None else rules
        self.diagnosis = Diagnosis(rules, silence) if rules else None
        self.views = Views(sinks)
        self.log_every_n_steps = log_every_n_steps
        clips = clip is not None
        self.view = View(optimizer_index, num_optimizers, per_layer, norm_type, clips, dry_run, handed_on)
        self.instruments = instruments
        self.total_norm: Tensor | None = None
        self.last_recorded: int | None = None
        self._next_early = 0  # the step from which probes ask for a record between two regular ones
        self._last_step = 0  # of those that were let through
        self.holds = self.steps_elsewhere = False
        self._held: Held | None = None
        self.counters = Counters()
        self._no_grad = torch.no_grad()  # made once: making it costs more than entering it
        self._at_first_step = self.counts_closures = True
        self._in_closure: bool | None = None  # whether it is called by an optimizer that steps; not known yet
        self._told_of_closures = self._told_of_left = False
        # What follows the optimizer's parameters is built apart: it is built anew whenever these change.
        self._clip = clip
        self._group_by = group_by
        self._name_parts()
        self._build()
        if num_optimizers == 1 and (waiting := self.waiting_groups):
            warn_of_waiting(waiting, self.layout.group_names)

    def _name_parts(self) -> None:
        which = f"of optimizer {self.optimizer_index}"
        self._measuring = Part(f"the measurement {which}", "its gradients are not watched any more")
        self._recording = Part(f"the record {which}", "its steps are not recorded any more")
        self._diagnosing = Part(f"the diagnosis {which}", "no rule looks at it any more")
        self._showing = Part(f"the views {which}", "they get no more records")
        self._probing = Part(f"the probes {which}", "its updates are not measured any more")
        # Of a policy that somebody else wrote the random numbers are put back after each answer in a dry run.
        policies = self._clip.values() if isinstance(self._clip, Mapping) else (self._clip,)
        foreign = not all(map(is_ours, policies))
        self._deciding = Part(
            f"the dry run of the policy {which}", "a policy's answers are not recorded any more", foreign=foreign
        )

    def __repr__(self) -> str:
        optimizers = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers.plain)
        action = self.judge.guard.action if isinstance(self.judge, Judge) else None
        return (
            f"GradientPipeline({type(self.module).__name__}, {optimizers}, clip={self._clip!r}, "
            f"on_nonfinite={action!r}, log_every_n_steps={self.log_every_n_steps}, group_by={self._group_by!r})"
        )

    def _build(self) -> None:
        self.layout = Layout.from_optimizer(self.module, self.optimizers, group_by=self._group_by)
        # An optimizer may hold nothing yet: a fold of no layers lies on the CPU, and is made anew when they come.
        device = self.layout.params[0].device if self.layout.params else torch.device("cpu")
        self.since_last = SinceLast(self.layout, device)
        self.clipper = None if self._clip is None else Clipper(self._clip, self.layout, device)
        self._decide = self.clipper.decide if self.clipper else leave_alone
        if self.view.dry_run:
            self._decide = self._decide_in_dry_run

    @property
    def waiting_groups(self) -> tuple[str, ...]:
        """Names of parameter groups that have a policy and do not exist (yet)."""
        return self.clipper.waiting if self.clipper else ()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Returns the optimizer; of several that are taken as one the first."""
        return self.optimizers.plain[0]

    @property
    def optimizer_index(self) -> int:
        """Returns the index of the optimizer among those of the run."""
        return self.view.optimizer

    @property
    def should_stop(self) -> bool:
        """Tells whether ``on_nonfinite="stop"`` met a bad step: end the loop."""
        return self.judge.should_stop

    @property
    def moved(self) -> bool:
        """Tells whether the last step was let through: not dropped, nor left to a scaler that drops it."""
        return self.judge.moved

    @property
    def last_incident(self) -> str | None:
        """Returns what was saved of the last bad step, in words; ``None`` if nothing was."""
        return self.judge.last_incident

    def totals(self) -> Totals:
        """What was done up to now, over all steps of the run: a host sync on a device."""
        self.since_last.fold()
        clipped = None if self.clipper is None else int(self.counters.clipped + self.since_last.num_clipped)
        nonfinite = int(self.counters.nonfinite + self.since_last.num_nonfinite)
        return Totals(self.counters.steps, clipped, nonfinite, self.counters.skipped)

    def before_step(
        self,
        *,
        step: int | None = None,
        log: bool | None = None,
        scaler: GradScaler | None = None,
        loss: Tensor | float | None = None,
        stepping: torch.optim.Optimizer | None = None,
    ) -> StepRecord | None:
        """Does all there is to do for one optimizer step: call it after ``backward()``, before ``optimizer.step()``.

        Args:
            step: x-axis of the record; counted from 0 if not given.
            log: whether a step that goes well makes a record; every ``log_every_n_steps`` if not given.
            scaler: the live ``GradScaler``, if there is one. Gradients are unscaled through it, once, and an overflow
                is left to it: go on with ``scaler.step(optimizer)`` as always.
            loss: of the step, without the loss scale. A guard drops a step whose loss is NaN; not looked at where
                several processes share the parameters and ``module`` does not say so: give it the wrapper of DDP.
            stepping: of several optimizers that are taken as one the one that steps now, where a loop unscales each
                just before its step, as Lightning does; ``None`` where all of them step after this call.

        Returns:
            The record of a logged or a bad step, else ``None``. No gradient anywhere is no step, and
            ``None``; if there never was one, instruments make it a record with ``num_steps=0`` on early steps.

        Raises:
            NonFiniteGradientError: if the guard ends the run; no weight has moved by then.
        """
        with self._no_grad:
            # Who neither guards nor clips only watches, and must not be able to end a run with any line of a step.
            if isinstance(self.judge, Unguarded) and (self.clipper is None or self.view.dry_run):
                return self._measuring.run(self._step, step, log, scaler, loss, stepping)
            return self._step(step, log, scaler, loss, stepping)

    def _step(
        self,
        step: int | None,
        log: bool | None,
        scaler: GradScaler | None,
        loss: Tensor | float | None,
        stepping: torch.optim.Optimizer | None,
    ) -> StepRecord | None:
        # Whatever has changed since the last step is noticed here, before anything is measured.
        if self._held is not None:
            self._publish_held()
        if not self.layout.fits(self.optimizers.plain) or (self._at_first_step and self._is_shared_otherwise()):
            self.follow(self.optimizers)
        if not self.layout.sharding.has_gradients(self.layout.params):
            return self._record_without_gradients(step)
        live_scaler = scaler if scaler is not None and self.optimizers.unscale_once_(scaler) else None
        measurement = self.layout.measure(self.clipper.needs if self.clipper else NOTHING)
        self.total_norm = measurement.total
        step = self.counters.steps if step is None else step
        self.counters.steps += 1
        log = self.counters.steps % self.log_every_n_steps == 0 if log is None else log
        early = not log and step >= self._next_early and self.instruments is not None
        log = log or early
        if self.counts_closures and (log or self._in_closure is not False):
            self._look_for_closure()

        # Judged before the record: a dropped step has no more gradients that a record could speak of.
        record = self._record_late_steps(wait=log) if self.judge.on_device is not None else None
        judgement = self.judge.judge(step, measurement, self._decide, loss=loss, scaler=live_scaler, wait=log)
        if isinstance(judgement, Dropped):
            if live_scaler is not None and stepping is not None:
                self.optimizers.scale_again_(live_scaler, stepping, dropped=True)
            self.since_last.num_nonfinite += judgement.damage.nonfinite
            self._recording.run(self.since_last.add_dropped, measurement)
            return self._record_dropped(step, judgement, live_scaler)

        clips = judgement.decision.clips
        self._recording.note(self.since_last.add, judgement.decision.measurement, judgement.signals, clips)
        self._last_step = step
        # The record is made first: it speaks of the raw gradients, which clipping overwrites.
        if judgement.damage is not None:
            self.since_last.num_nonfinite += 1
        if log or judgement.nonfinite or self.judge.spike is not None or judgement.damage is not None:
            record = self._record(step, judgement.decision.measurement, judgement, scaler=live_scaler, early=early)
        if judgement.clipped and not self.view.dry_run:
            clips.apply_()
            self._recording.note(self.since_last.add_clipped, judgement.decision.measurement, judgement.signals, clips)
        if live_scaler is not None and stepping is not None:
            self.optimizers.scale_again_(live_scaler, stepping, dropped=False)
        if self.instruments is not None:
            self._probing.note(self.instruments.before_step, self.layout, step)
        if self._held is not None:
            self._held.note_writes(self.layout)
        return record

    def hand_over(self, optimizer: torch.optim.Optimizer) -> bool:
        """Completes a record that waits, with what the optimizer gets: call it when nobody changes gradients any more.

        Needed only where :attr:`holds` is set; else it does nothing. Measures gradients once more, on logged steps.

        Args:
            optimizer: that is about to move weights; of several that are taken as one the last makes the record.

        Returns:
            Whether somebody has changed the gradients since :meth:`before_step`.
        """
        held = self._held
        if held is None:
            return False
        # Several optimizers that are taken as one make one record, and it is complete with the last of them.
        held.handed.add(id(optimizer))
        if len(held.handed) < len(self.optimizers.plain):
            return False
        self._held = None
        layout, needs = self.layout, self.clipper.needs if self.clipper else NOTHING
        if not layout.fits(self.optimizers.plain):  # parameters have come or gone since we clipped
            layout, needs = Layout.from_optimizer(self.module, self.optimizers, group_by=self._group_by), NOTHING
        found = self._recording.run(held.as_handed, layout, needs)
        record, changed = (held.without_knowledge(), False) if found is None else found
        self._publish(record)
        return changed

    def drop_raised(
        self, what: str, *, step: int | None = None, error: BaseException | None = None
    ) -> StepRecord | None:
        """Drops a step whose forward or backward pass has raised because something was not finite.

        Call it in place of :meth:`before_step`, from where the exception was caught: gradients become ``None`` and
        buffers go back, it is counted, saved and recorded, and the loop may go on with the next batch.

        Args:
            what: was not finite, in words: ``"batch['x'] holds 1 NaN at [20, 0]"``.
            step: x-axis of the record; counted from 0 if not given.
            error: the exception, for what is saved.

        Raises:
            NonFiniteGradientError: if the guard ends the run.
        """
        if isinstance(self.judge, Unguarded):
            return None
        # It counts like a step that was measured, so that the x-axis and patience go on.
        step = self.counters.steps if step is None else step
        self.counters.steps += 1
        dropped = self.judge.drop_raised(step, self.layout, what, error)
        self._recording.run(self.since_last.add_dropped, dropped.measurement)
        self.since_last.num_nonfinite += 1
        return self._record_dropped(step, dropped)

    def after_step(self) -> None:
        """Ends a step: call it after ``optimizer.step()``, if there are instruments or steps are left to the device.

        Compares weights with those before the step, on sampled steps of the instruments.
        """
        if isinstance(self.judge, Unguarded):
            self._measuring.note(self._end_step)
        else:
            self._end_step()

    def _end_step(self) -> None:
        # Most steps end here without a call: nothing was dropped, nothing waits, nothing was copied.
        if self.judge.has_told_optimizer:
            self.judge.end_step()
        if self._held is not None:
            self._publish_held()
        if self.instruments is not None:
            if self.instruments.compares:
                self._probing.run(self.instruments.after_step, self.layout)
            if self.instruments.awaits_steps:
                self._measuring.run(self._record_waiting)

    def _look_for_closure(self) -> None:
        """Refuses to guard an optimizer that asks for gradients again within one step; says so where nobody guards.

        Looked for at the first step and at records; at each step only where a closure is in use.
        """
        asked = times_asked(self.optimizers.layers)
        self._in_closure = asked > 0
        if asked < 2:
            return
        again = "the optimizer asks for gradients several times within one step (its closure was called again)"
        if isinstance(self.judge, Judge):
            raise ValueError(
                f"on_nonfinite: {again}, and has moved the weights by now: a step cannot be dropped half way; "
                "pass on_nonfinite=None, or use another optimizer"
            )
        if not self._told_of_closures:
            what = "each of them is clipped and" if self.clipper and not self.view.dry_run else "each of them is"
            tell(f"GradientPipeline: {again}: {what} counted as a step of its own.")
        self._told_of_closures = True

    def _decide_in_dry_run(self, measurement: Measurement) -> Clips:
        """What the policies would do; nothing where they have failed before."""
        answer = None if self.clipper is None else self._deciding.run(self.clipper.decide, measurement)
        return leave_alone(measurement) if answer is None else answer

    def _is_shared_otherwise(self) -> bool:
        """Whether the first step finds that processes share gradients in another way: DDP was given a hook since."""
        self._at_first_step = False
        return find_sharding(self.module, self.layout.params).whole is not self.layout.sharding.whole

    def _record_dropped(self, step: int, dropped: Dropped, scaler: GradScaler | None = None) -> StepRecord | None:
        """Records a dropped step, and ends the run if that was one too many."""
        # The record comes first: a run that ends here has it in its views.
        self.counters.skipped += 1
        record = self._record(step, dropped.measurement, dropped, scaler=scaler)
        if dropped.error is not None:
            raise dropped.error
        return record

    def _record_late_steps(self, *, wait: bool) -> StepRecord | None:
        """Records of bad steps that the device has left out, as far as the host knows of them; returns the last."""
        record = None
        for left_out in self.judge.learn_late_steps(wait=wait) if self.judge.on_device is not None else ():
            record = self._record_dropped(left_out.step, left_out.dropped)
        return record

    def _record(
        self,
        step: int,
        measurement: Measurement,
        judgement: Judgement,
        *,
        scaler: GradScaler | None = None,
        early: bool = False,
    ) -> StepRecord | None:
        """The record of a step, shown to the rules and the views; ``None`` where it cannot be made."""
        # Where somebody may change the gradients after us, the record waits for what the optimizer gets.
        record = self._recording.run(self._build_record, step, measurement, judgement, scaler, early)
        if record is not None and self.holds and isinstance(judgement, Passed) and not isinstance(judgement, Over):
            self._held = Held(record)
            return record
        return None if record is None else self._publish(record)

    def _record_without_gradients(self, step: int | None) -> StepRecord | None:
        """Records that no parameter has a gradient, on early steps, as long as none ever had."""
        step = self._probing.run(self._early_without_gradients, step)
        if step is None or self.instruments is None:
            return None
        cleared = self._probing.run(self.instruments.leads_to, self.layout)
        record = self._recording.run(no_step_record, self.layout, self.view, step, cleared=cleared)
        return None if record is None else self._publish(record)

    def _early_without_gradients(self, step: int | None) -> int | None:
        if self.instruments is None or self.steps_elsewhere:
            return None
        self.instruments.without_step(self.layout)
        step = self.instruments.step if step is None else step
        return step if self.counters.steps == 0 and step in EARLY else None

    def _record_waiting(self) -> None:
        """Records that backward passes come and no step, now and then."""
        assert self.instruments is not None
        waiting = self.instruments.waiting(self.layout)
        if waiting is None or self.steps_elsewhere:
            return
        step = self.instruments.step
        record = self._recording.run(no_step_record, self.layout, self.view, step, waiting=waiting)
        if record is not None:
            self._publish(record)

    def _publish_held(self) -> None:
        """Hands on a record whose step was never handed to an optimizer: a loss scaler has dropped it, say."""
        held, self._held = self._held, None
        if held is not None:
            self._publish(held.without_knowledge())

    def _publish(self, record: StepRecord) -> StepRecord:
        """Adds to a record what probes saw and rules found, and hands it to the views."""
        # What was seen first, since rules look at all of it; then what was found, since views show both.
        if self.instruments is not None:
            record = self._probing.run(self.instruments.enrich, record, self.layout, self.optimizers) or record
        if self.last_incident is not None and record.cause is not None:
            record = replace(record, incident=self.last_incident)
        if self.diagnosis is not None:
            record = replace(record, findings=self._diagnosing.run(self.diagnosis.observe, record) or ())
        if (found := self.judge.take_spike(record)) is not None:
            record = replace(record, findings=(*record.findings, found))
        self._showing.run(self.views.write, record)
        return record

    def _build_record(
        self, step: int, measurement: Measurement, judgement: Judgement, scaler: GradScaler | None, early: bool
    ) -> StepRecord:
        if not self._told_of_left and (left := self.layout.left(self.module)):
            self._told_of_left = True
            _warn_of_left(left)
        # An early record does not put off the next regular one.
        self._count()
        self._next_early = next_early(step)
        if not early:
            self.last_recorded = step
        record = build_record(
            measurement, judgement, self.since_last, self.counters, self.view, step=step, scaler=scaler
        )
        self.since_last.reset()
        return replace(record, early=early)

    def _count(self) -> None:
        self.since_last.fold()
        self.counters.add(self.since_last)

    def follow(self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Optimizers) -> None:
        """Goes on with another optimizer in the place of the one it had, or with changed parameters.

        What is known of parameters by name stays: statistics of policies, counts, and the fold since the last record
        where layers are the same. Called by itself when parameters have changed; call it for a new optimizer.
        """
        # What belongs to the old parameters is told before they go.
        self._publish_held()
        self._record_late_steps(wait=True)
        self.optimizers = optimizer if isinstance(optimizer, Optimizers) else Optimizers(optimizer)
        # What is kept by name goes over to the new layout. What does not fit is no mistake, and nobody is warned of it.
        state, since = self.clipper.state_dict() if self.clipper else {}, self.since_last
        self._build()
        self.judge.follow(self.optimizers)
        self._recording.run(self._take_over, since)
        if self.clipper:
            self.clipper.load_state_dict(state, warn=False)

    def _take_over(self, since: SinceLast) -> None:
        """Goes on with the fold over the layout before, where layers are the same; else keeps its counts."""
        if not self.since_last.load_state_dict(since.state_dict()):
            self.counters.add(since)

    def flush(self) -> StepRecord | None:
        """Makes a record of the steps since the last one, if there are any: at the end of a run.

        It has the norms of the last step, if that was finite, and what clipping left of them where that can be told
        without its gradients: for a policy that scales all of them by one coefficient.
        """
        self._publish_held()
        last = self.since_last.last
        if last is None or not math.isfinite(last.signals[0]):  # host sync: a run ends
            return None
        over = last.as_judgement(self.layout, self.since_last.present)
        return self._record(self._last_step, over.decision.measurement, over)

    def close(self) -> None:
        """Ends every view, and says which parameter groups never came that a policy was waiting for."""
        # The last record before the views close, and after it nothing.
        if waiting := self.waiting_groups:
            warn_of_waiting(waiting, self.layout.group_names, at_the_end=True)
        self.judge.end_step()
        self.flush()
        self.views.close()

    def __enter__(self) -> GradientPipeline:
        """Returns the pipeline itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the pipeline, whatever happened."""
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on: tensors, numbers, strings, lists and dicts only."""
        self._publish_held()
        self._record_late_steps(wait=True)
        return {
            "counters": self.counters.state_dict(),
            "window": self._recording.run(self.since_last.state_dict) or {},
            "guard": self.judge.state_dict(),
            "clip": self.clipper.state_dict() if self.clipper else {},
            "diagnosis": self._diagnosing.run(self.diagnosis.state_dict) or {} if self.diagnosis else {},
            "instruments": self._instruments_state(),
            "last_recorded": -1 if self.last_recorded is None else self.last_recorded,
            "next_early": self._next_early,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; warns of parameters and policies that do not fit."""
        last = state.get("last_recorded", -1)
        self.last_recorded = None if last < 0 else last
        self.counters.load_state_dict(state["counters"])
        self._next_early = state.get("next_early", next_early(self.counters.steps))
        if state["window"]:
            self._recording.run(self.since_last.load_state_dict, state["window"])
        self.judge.load_state_dict(state["guard"])
        if self.clipper:
            self.clipper.load_state_dict(state["clip"])
        if self.diagnosis and state.get("diagnosis"):
            self._diagnosing.run(self.diagnosis.load_state_dict, state["diagnosis"])
        if self.instruments and state.get("instruments"):
            self._probing.run(self.instruments.load_state_dict, self.layout, state["instruments"])

    def _instruments_state(self) -> dict[str, Any]:
        if self.instruments is None:
            return {}
        return self._probing.run(self.instruments.state_dict, self.layout) or {}


def _warn_of_left(names: Sequence[str]) -> None:
    """Says that an optimizer steps what the model does not use any more: whoever replaced it has forgotten it there."""
    tell(
        f"the optimizer holds {len(names)} parameters that are not the model's any more ({', '.join(names[:5])}). Give "
        "it those that have taken their place; if another optimizer steps them, tell the pipeline: "
        "pipeline.follow(optimizer)"
    )
