"""One optimizer's gradients, step by step: measure, guard, clip, diagnose, record."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.clipper import Clipper, Clips, Policies
from lightning_gradguard.diagnose.base import Diagnosis, Rule
from lightning_gradguard.diagnose.instruments import Instruments
from lightning_gradguard.guard import Action, Damage, Guard, NonFiniteGradientError, inspect, why_not_droppable
from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.layout import GroupBy, Layout
from lightning_gradguard.measure import Measurement, measure, measure_exactly
from lightning_gradguard.record import Finding, Sink, StepRecord, Verdict
from lightning_gradguard.recording import build_record
from lightning_gradguard.recovery import Recovery, any_process
from lightning_gradguard.scaling import unscale_once_
from lightning_gradguard.window import Counters, Window


class GradientPipeline:
    """Watches, clips and guards the gradients of one optimizer, between ``backward()`` and ``optimizer.step()``.

    This is the whole library without Lightning: the callbacks run one pipeline for each optimizer.

    Args:
        module: where parameter names come from.
        optimizer: whose parameters to watch; nothing else is touched.
        clip: a policy, a mapping from parameter-group name to policy, or ``None`` to leave gradients alone.
        on_nonfinite: ``"skip"``, ``"rollback"``, ``"stop"`` or ``"raise"``, or a
            :class:`~lightning_gradguard.guard.Guard` with more settings; ``None`` watches only.
        patience: bad steps in a row before every action raises; for a word, not for a ``Guard``.
        rules: diagnosis rules, looked at on logged steps; ``None`` for none.
        sinks: views that get the records.
        log_every_n_steps: how often a record is made; a bad step always makes one. 50, as the Trainer's.
        group_by: ``"layer"`` or ``"parameter"``.
        norm_type: p of the layer norms in records; all else is l2.
        per_layer: whether records hold layers, or totals only.
        optimizer_index: which optimizer this is, for the record.
        num_optimizers: how many there are.
        instruments: probes of activations, updates and time, for the rules that need more than gradients; shared by
            the pipelines of a model. See :class:`~lightning_gradguard.diagnose.instruments.Instruments` for the calls
            around the forward pass.
        recovery: what puts buffers and weights back, shared by the pipelines of a model; made if not given.
        incidents: saves bad steps for replay, shared by the pipelines of a model; ``None`` saves nothing.

    Attributes:
        should_stop: set when ``on_nonfinite="stop"`` met a bad step: end the loop.
        total_norm: of the last step before clipping, on the device; ``None`` before the first.
        diagnosis: what the rules found so far, or ``None`` without rules.
        moved: whether the last step was let through: not dropped, nor left to a scaler that drops it.
        last_incident: what was saved of the last bad step, in words; ``None`` if nothing was.

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
        optimizer: torch.optim.Optimizer,
        clip: Policies | None = None,
        on_nonfinite: Action | Guard | None = None,
        patience: int = 20,
        rules: Sequence[Rule] | None = None,
        sinks: Sequence[Sink] = (),
        log_every_n_steps: int = 50,
        group_by: GroupBy = "layer",
        norm_type: float = 2.0,
        per_layer: bool = True,
        optimizer_index: int = 0,
        num_optimizers: int = 1,
        instruments: Instruments | None = None,
        recovery: Recovery | None = None,
        incidents: BlackBox | None = None,
    ) -> None:
        if isinstance(log_every_n_steps, bool) or not isinstance(log_every_n_steps, int) or log_every_n_steps < 1:
            raise ValueError(f"log_every_n_steps must be an int of at least 1, got {log_every_n_steps!r}")
        self.module = module
        self.optimizer = optimizer
        self.guard = Guard(on_nonfinite, patience) if isinstance(on_nonfinite, str) else on_nonfinite
        if self.guard is not None and (reason := why_not_droppable(optimizer)) is not None:
            raise ValueError(f"on_nonfinite: {reason}, and a step cannot be dropped half way; pass on_nonfinite=None")
        rollback = self.guard is not None and self.guard.action == "rollback"
        self.recovery = recovery or (Recovery(module, [optimizer], rollback=rollback) if self.guard else None)
        self.incidents = incidents
        self.moved = True
        self.last_incident: str | None = None
        self._history: deque[tuple[int, float, str]] = deque(maxlen=20)
        self.diagnosis = Diagnosis(rules) if rules else None
        self.sinks = list(sinks)
        self.log_every_n_steps = log_every_n_steps
        self.norm_type = norm_type
        self.per_layer = per_layer
        self.optimizer_index = optimizer_index
        self.num_optimizers = num_optimizers
        self.instruments = instruments
        self.should_stop = False
        self.total_norm: Tensor | None = None
        self._spike: str | None = None
        self.counters = Counters()
        self._clip = clip
        self._group_by = group_by
        self._build()

    def _build(self) -> None:
        self.layout = Layout.from_optimizer(self.module, self.optimizer, group_by=self._group_by)
        device = self.layout.params[0].device if self.layout.params else torch.device("cpu")
        self.window = Window(self.layout, device)
        self.clipper = None if self._clip is None else Clipper(self._clip, self.layout, device)

    @torch.no_grad()
    def before_step(
        self,
        *,
        step: int | None = None,
        log: bool | None = None,
        scaler: GradScaler | None = None,
        loss: Tensor | float | None = None,
    ) -> StepRecord | None:
        """Does all there is to do for one optimizer step: call it after ``backward()``, before ``optimizer.step()``.

        Args:
            step: x-axis of the record; counted from 0 if not given.
            log: whether a step that goes well makes a record; every ``log_every_n_steps`` if not given.
            scaler: the live ``GradScaler``, if there is one. Gradients are unscaled through it, once, and an overflow
                is left to it: go on with ``scaler.step(optimizer)`` as always.
            loss: of the step, without the loss scale; only a guard with ``spikes`` looks at it.

        Returns:
            The record of a logged or a bad step, else ``None``. No gradient anywhere is no step, and ``None``.

        Raises:
            NonFiniteGradientError: if the guard ends the run; no weight has moved by then.
        """
        if not self.layout.fits(self.optimizer):
            self._follow_layout()
        if not self.layout.has_gradients():
            return None
        live_scaler = scaler if unscale_once_(scaler, self.optimizer) else None
        measurement = measure(self.layout)
        self.total_norm = measurement.total
        step = self.counters.steps if step is None else step
        self.counters.steps += 1
        log = self.counters.steps % self.log_every_n_steps == 0 if log is None else log
        self.window.see(measurement.present)

        clips = self.clipper.decide(measurement) if self.clipper else Clips()
        changes = clipped = clips.any_clipped()
        finite: Tensor | None = None
        if self.guard is None:
            finite = measurement.total.isfinite()
            clipped = clipped & finite
            if finite.device.type == "cpu":  # no sync there, and then gradients need not be multiplied by one
                changes = bool(changes)
            self._count_nonfinite(~finite)
        else:
            assert self.recovery is not None
            self.recovery.before_step()
            doubts = self._doubts(measurement.total, loss)
            # The one host sync of a quiet step: skip must know before optimizer.step. It brings along whether the
            # step is clipped, so that gradients are not multiplied by one.
            flags = [measurement.total, torch.as_tensor(clipped).to(measurement.total), *doubts.values()]
            total, flag, *rest = torch.stack(flags).tolist()
            damage: Damage | None = None
            if not math.isfinite(total):
                damage = inspect(measurement)
                if damage is None:
                    measurement = measure_exactly(measurement)
                    clips = self.clipper.decide(measurement) if self.clipper else clips
                    total, flag = float(measurement.total), bool(clips.any_clipped())  # host syncs: a rare overflow
            if damage is None:
                damage = self._look_beyond_gradients(total, dict(zip(doubts, rest, strict=True)))
            log = log or self._spike is not None
            if damage is not None:
                self._history.append((step, total, damage.cause))
                return self._bad_step(step, measurement, damage, live_scaler)
            self.guard.good_step()
            self.recovery.good_step(step)
            self._history.append((step, total, "clipped" if flag else "ok"))
            changes = clipped = bool(flag)
            self.moved = True
        self.counters.clipped = self.counters.clipped + clipped
        self.window.num_clipped = self.window.num_clipped + clipped
        self.window.add(measurement.norms, measurement.total, clips.smallest_coefficient(), finite)
        if (by_layer := clips.layer_coefficients(self.layout)) is not None:
            self.window.add_layer_coefficients(by_layer)

        # The record is made first: it speaks of the raw gradients, which clipping overwrites.
        after = clips.after(measurement) if log else None
        record = self._record(step, measurement, after=after, clips=clips, scaler=live_scaler) if log else None
        if changes is not False:
            clips.apply_()
        if self.instruments is not None:
            self.instruments.before_step(self.layout, step)
        return record

    def after_step(self) -> None:
        """Compares weights with those before the step, on sampled steps of the instruments; otherwise does nothing."""
        if self.instruments is not None:
            self.instruments.after_step(self.layout)

    def _bad_step(self, step: int, measurement: Measurement, damage: Damage, scaler: GradScaler | None) -> StepRecord:
        """A step that does not go through: left to the scaler if that is its business, else dropped."""
        assert self.guard is not None and self.recovery is not None
        self._count_nonfinite(1.0 if damage.nan else 0.0)
        self.counters.skipped += 1
        self.moved = False
        if scaler is not None and damage.nan and self.guard.leaves_to_scaler(scaler.get_scale()):  # host sync: rare
            self.recovery.overflow_step()
            return self._record(step, measurement, damage=damage, scaler=scaler, dropped_as="overflow")
        must_end = self.guard.bad_step()
        self.should_stop = self.should_stop or self.guard.action == "stop"
        self._save_incident(step, measurement, damage, scaler)
        for parameter in self.layout.params:
            parameter.grad = None  # zeros would still move weights, through momentum and weight decay
        dropped_as: Verdict = "rolled_back" if self.recovery.bad_step(self.guard.streak) else "skipped"
        record = self._record(step, measurement, damage=damage, scaler=scaler, dropped_as=dropped_as)
        if must_end:
            raise NonFiniteGradientError(self._last_words(damage, step))
        return record

    def _doubts(self, total: Tensor, loss: Tensor | float | None) -> dict[str, Tensor]:
        """What else may be wrong with a step whose gradients are fine, on the device, the same on every process."""
        assert self.guard is not None and self.recovery is not None
        doubts: dict[str, Tensor] = {}
        if (norm := self.recovery.buffers.norm()) is not None:
            doubts["buffers"] = (~norm.isfinite()).to(total)
        if loss is not None and self.guard.watches_loss:
            doubts["loss"] = torch.as_tensor(loss).detach().to(total)
        return mean_over_processes(doubts)

    def _look_beyond_gradients(self, total: float, doubts: Mapping[str, float]) -> Damage | None:
        """Damage to buffers by the forward pass, and spikes; ``None`` for a good step."""
        assert self.guard is not None and self.recovery is not None
        num_params = len(self.layout.params)
        if doubts.get("buffers"):
            spoiled = self.recovery.buffers.spoiled()  # host syncs: only a doubtful step gets here
            if any_process(bool(spoiled), self.layout.params):
                return Damage({}, {}, num_params, buffers=spoiled or ("on another process",))
        self._spike = self.guard.find_spike(total, doubts.get("loss"))
        if self._spike is not None and self.guard.spikes is not None and self.guard.spikes.drop:
            return Damage({}, {}, num_params, spike=self._spike)
        return None

    def _save_incident(self, step: int, measurement: Measurement, damage: Damage, scaler: GradScaler | None) -> None:
        assert self.guard is not None and self.recovery is not None
        self.last_incident = None
        if self.incidents is not None:
            self.last_incident = self.incidents.save(
                step=step,
                optimizer=self.optimizer,
                optimizer_index=self.optimizer_index,
                action=self.guard.action,
                cause=damage.cause,
                layout=self.layout,
                gradients=measurement.grads,
                bad_names=damage.names,
                bad_buffers=damage.buffers,
                history=tuple(self._history),
                buffers=self.recovery.buffers.named(),
                scaler=scaler,
            )

    def _count_nonfinite(self, steps: Tensor | float) -> None:
        self.counters.nonfinite = self.counters.nonfinite + steps
        self.window.num_nonfinite = self.window.num_nonfinite + steps

    def _last_words(self, damage: Damage, step: int) -> str:
        assert self.guard is not None
        why = "" if self.guard.action == "raise" else f" This was bad step {self.guard.streak} in a row (patience)."
        what = f"gradient of {damage.describe()}" if damage.nan else damage.describe()
        ruined = (
            " A parameter is not finite, so dropping steps cannot help: use rollback, or go back to a checkpoint."
            if self.recovery is not None and self.recovery.ruined()
            else " Likely causes: a learning rate that is too high, a bad batch, log or sqrt or division at zero."
        )
        saved = f" {self.last_incident}" if self.last_incident else ""
        return f"{what}; step {step}, optimizer {self.optimizer_index}.{why} No weight was moved by it.{ruined}{saved}"

    def _record(self, step: int, measurement: Measurement, **facts: Any) -> StepRecord:
        record = build_record(
            measurement,
            step=step,
            optimizer=self.optimizer_index,
            num_optimizers=self.num_optimizers,
            window=self.window,
            counters=self.counters,
            per_layer=self.per_layer,
            norm_type=self.norm_type,
            clips_at_all=self.clipper is not None,
            **facts,
        )
        self.window.reset()
        if self.instruments is not None:
            record = self.instruments.enrich(record, self.layout)
        if self.diagnosis is not None:
            record = replace(record, findings=self.diagnosis.observe(record))
        if self._spike is not None:
            record = replace(record, findings=(*record.findings, spike_finding(self._spike, record)))
            self._spike = None
        for sink in list(self.sinks):
            try:
                sink.write(record)
            except OSError as error:  # a full disk costs the record, never the run
                self.sinks.remove(sink)
                warnings.warn(f"{type(sink).__name__} cannot write, and gets no more records: {error}", stacklevel=3)
        return record

    def _follow_layout(self) -> None:
        """Takes in parameters that were added to the optimizer since; what is known of the others stays."""
        state = self.clipper.state_dict() if self.clipper else {}
        self._build()
        if self.clipper:
            self.clipper.load_state_dict(state, warn=False)

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on: tensors, numbers, strings, lists and dicts only."""
        return {
            "counters": self.counters.state_dict(),
            "window": self.window.state_dict(),
            "guard": self.guard.state_dict() if self.guard else {},
            "clip": self.clipper.state_dict() if self.clipper else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; warns of parameters and policies that do not fit."""
        self.counters.load_state_dict(state["counters"])
        self.window.load_state_dict(state["window"])
        if self.guard and state["guard"]:
            self.guard.load_state_dict(state["guard"])
        if self.clipper:
            self.clipper.load_state_dict(state["clip"])


def mean_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their means, by one all-reduce; unchanged where there is one process, or nothing to agree upon."""
    if not values or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    together = torch.stack(list(values.values())) / dist.get_world_size()
    dist.all_reduce(together)
    return dict(zip(values, together.unbind(), strict=True))


def spike_finding(spike: str, record: StepRecord) -> Finding:
    """A spike as the views show it."""
    return Finding(
        rule="spike",
        severity="warning",
        message=spike,
        step=record.step,
        causes=("an unusual batch", "a learning rate near the edge of stability"),
        remedies=("clip gradients with an adaptive policy", "let the guard drop spikes", "lower the learning rate"),
    )
