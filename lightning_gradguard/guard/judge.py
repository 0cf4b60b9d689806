"""Lets a step through or drops it, as the guard has it, and puts right what a bad one has damaged."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.clip import answer
from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.guard.damage import Damage, inspect
from lightning_gradguard.guard.dropped_step import DroppedStep
from lightning_gradguard.guard.guard import Guard, NonFiniteGradientError
from lightning_gradguard.guard.on_device import DeviceDropper, damage_of, why_not_on_device
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.guard.squares import Squares
from lightning_gradguard.guard.verdict import Decision, Dropped, Judgement, LateStep, OnDevice, Pair, Passed, Signals
from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.loss_scale import as_signal
from lightning_gradguard.measurement.measurement import Measurement, measure_exactly
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.record import Finding, StepRecord, Verdict

Decide = Callable[[Measurement], Clips]


def _read(signals: Signals) -> tuple[Signals, Pair]:
    """Returns the signals as floats, and the first two of them for the record: a host sync on a device."""
    total = signals.total
    if answer.floats_on_cpu and total.device.type == "cpu" and type(total) is Tensor:
        # Each by itself, where a read waits for nobody: one operator less.
        buffers, loss = signals.buffers, signals.loss
        found = Signals(
            total.item(),
            signals.coefficient.item(),
            buffers if buffers is None else buffers.item(),
            loss if loss is None else loss.item(),
        )
        return found, (found.total, found.coefficient)
    together = torch.stack([signal for signal in signals if signal is not None])
    numbers = iter(together.tolist())
    return Signals(*[None if signal is None else next(numbers) for signal in signals]), together


def _signals_of(decision: Decision) -> Signals:
    return Signals(decision.measurement.total, decision.clips.smallest_coefficient)


def _decide_exactly(measurement: Measurement, decide: Decide) -> Decision:
    """The decision where the norm has overflowed and no element has."""
    exact = measure_exactly(measurement)
    return Decision(exact, decide(exact))


class Unguarded:
    """Stands in for a :class:`Judge` where nobody guards: every step is let through.

    Attributes:
        moved, should_stop, last_incident, spike, on_device, has_told_optimizer: as of a :class:`Judge` that never met a
            bad step.
    """

    moved = True
    should_stop = False
    last_incident: str | None = None
    spike: str | None = None
    on_device: DeviceDropper | None = None
    has_told_optimizer = False

    def follow(self, optimizers: Optimizers) -> None:
        """Does nothing: there is nothing to go on with."""

    def judge(self, step: int, measurement: Measurement, decide: Decide, **ignored: Any) -> Judgement:
        """Lets the step through.

        On the CPU, where looking costs nothing, a norm that overflowed is measured again exactly, a step that is not
        finite is marked, so that it makes a record, and gradients are not multiplied by one.
        """
        decision = Decision(measurement, decide(measurement))
        signals = _signals_of(decision)
        if signals.total.device.type != "cpu":
            return Passed(decision, torch.stack(signals[:2]), clipped=bool(decision.clips.answers))
        found, pair = _read(signals)
        nonfinite = not math.isfinite(found.total) and inspect(measurement) is not None
        if not math.isfinite(found.total) and not nonfinite:  # every element is finite, only the norm overflowed
            decision = _decide_exactly(measurement, decide)
            found, pair = _read(_signals_of(decision))
        return Passed(
            decision,
            pair,
            clipped=found.coefficient < 1.0 or (nonfinite and bool(decision.clips.answers)),
            nonfinite=nonfinite,
        )

    def learn_late_steps(self, *, wait: bool = False) -> list[LateStep]:
        """Returns none: every step is judged at once."""
        return []

    def take_spike(self, record: StepRecord) -> Finding | None:
        """Returns ``None``: nobody looks for spikes."""
        return None

    def end_step(self) -> None:
        """Does nothing: there is nothing to be taken back."""

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty state: there is nothing to be kept."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes no notice of the state of a run that was guarded."""


class Judge:
    """Stands between the gradients of one optimizer, or of several taken as one, and their step.

    Args:
        guard: counts bad steps and says what becomes of them.
        recovery: what puts buffers and weights back, shared by the judges of a model.
        optimizers: whose steps these are.
        optimizer_index: which optimizer this is, for messages.
        incidents: saves bad steps for replay; ``None`` saves nothing.

    Raises:
        ValueError: if the guard shall drop steps on the device, and that cannot be.

    Attributes:
        on_device: drops bad steps on the device; ``None`` where each step is judged on the host.
        moved: whether the last step was let through: not dropped, nor left to a scaler that drops it.
        should_stop: whether the guard's action is to stop, and a bad step was met.
        spike: what is far above the usual in the step at hand, in words.
        last_incident: what was saved of the last bad step, in words; ``None`` if nothing was.
        has_told_optimizer: whether the optimizer was told to leave a step out, which :meth:`end_step` takes back.
    """

    def __init__(
        self,
        guard: Guard,
        recovery: Recovery,
        optimizers: Optimizers,
        optimizer_index: int = 0,
        incidents: BlackBox | None = None,
    ) -> None:
        self.guard = guard
        self.recovery = recovery
        self.moved = True
        self.should_stop = False
        self.spike: str | None = None
        self.last_incident: str | None = None
        self.has_told_optimizer = False
        self._of_streak: str | None = None  # the first incident that was saved of the bad steps in a row
        self._optimizers = optimizers
        self._index = optimizer_index
        self._incidents = incidents
        self._dropped: DroppedStep | None = None
        self._history: deque[tuple[int, float, str]] = deque(maxlen=20)
        self.on_device = self._make_dropper()
        self._squares = Squares(optimizers.plain)

    def follow(self, optimizers: Optimizers) -> None:
        """Goes on with other optimizers, or with those it had after their parameters have changed."""
        self.recovery.follow(self._optimizers.plain, optimizers.plain)
        self._optimizers = optimizers
        self.on_device = self._make_dropper()
        self._squares = Squares(optimizers.plain)

    def _make_dropper(self) -> DeviceDropper | None:
        params, plain = self._optimizers.params, self._optimizers.plain
        reason = "incidents are saved on the host" if self._incidents else why_not_on_device(plain, params)
        if self.guard.on_device and reason is not None:
            raise ValueError(f"on_device=True cannot drop steps on the device: {reason}; pass on_device=None")
        on_cuda = bool(params) and all(parameter.device.type == "cuda" for parameter in params)
        wanted = on_cuda if self.guard.on_device is None else self.guard.on_device
        return DeviceDropper(plain, self.recovery.buffers) if wanted and reason is None else None

    def judge(
        self,
        step: int,
        measurement: Measurement,
        decide: Decide,
        *,
        loss: Tensor | float | None = None,
        scaler: GradScaler | None = None,
        wait: bool = True,
    ) -> Judgement:
        """Judges one step, and carries out what a bad one asks for.

        Args:
            step: which one, for messages and incidents.
            measurement: of its gradients.
            decide: asks the policies about a measurement.
            loss: of the step, in real units.
            scaler: the live loss scaler, whose business an overflow is.
            wait: whether the host must know now; else the device may drop the step by itself.
        """
        if not self.recovery.started:
            self.recovery.begin_step()
        decision = Decision(measurement, decide(measurement))
        signals = self._signals(decision, loss)
        if self.has_told_optimizer:
            self.end_step()
        if self.on_device is not None and scaler is None and not wait:
            # A fused optimizer leaves a bad step out by itself: the host need not wait for the numbers.
            self.has_told_optimizer = True
            masked = self.on_device.drop_if_bad_(step, measurement, signals, self._told_by_gradients)
            return OnDevice(decision, masked, clipped=bool(decision.clips.answers))

        found, pair = _read(signals)  # the one host sync of a quiet step: skip must know before optimizer.step
        if self.on_device is not None and isinstance(pair, tuple):  # beside those of steps left to the device
            pair = torch.stack(signals[:2])
        damage = None
        if not math.isfinite(found.total):
            damage = inspect(measurement)
            if damage is None:  # every element is finite, only the norm overflowed: it is measured again, exactly
                decision = _decide_exactly(measurement, decide)
                exact, pair = _read(_signals_of(decision))  # host sync: rare
                found = found._replace(total=exact.total, coefficient=exact.coefficient)
            else:
                damage = self._blame_loss(damage, measurement.layout, self._told_by_gradients)
        damage = damage or self._look_beyond_gradients(found, decision)
        if damage is not None and (damage.loss is None or self.guard.drop_nan_loss):
            return self._drop(step, measurement, damage, scaler)
        self._let_through(step, found)
        return Passed(decision, pair, clipped=found.coefficient < 1.0, damage=damage)

    def _signals(self, decision: Decision, loss: Tensor | float | None) -> Signals:
        """The signals of a step, on the device, the same on every process."""
        total = decision.measurement.total
        doubts: dict[str, Tensor] = {}
        if self.recovery.buffers.names and (sum_of_buffers := self.recovery.buffers.total()) is not None:
            doubts["buffers"] = sum_of_buffers.to(total)
        if loss is not None and self.recovery.together.certain:  # else one process might drop a step and others not
            doubts["loss"] = as_signal(loss, total)
        if doubts and self.recovery.together.several:
            doubts = self.recovery.together.mean(doubts)
        return Signals(total, decision.clips.smallest_coefficient, **doubts)

    @property
    def _told_by_gradients(self) -> Tensor | None:
        """The loss of this process alone, where a NaN loss makes the gradients of all processes NaN."""
        return self.recovery.loss_in_gradients if self.recovery.tells_by_gradients else None

    def _blame_loss(self, damage: Damage, layout: Layout, loss: Tensor | None) -> Damage:
        """Finds out whether gradients are NaN because one of several processes has told the others so of its loss."""
        if not self.recovery.tells_by_gradients or not any(damage.nan.values()):
            return damage
        told = loss is not None and bool(loss.isnan())  # host sync: a bad step is no quiet step
        return replace(damage, loss=math.nan) if self.recovery.together.any(told, layout.params) else damage

    def _look_beyond_gradients(self, found: Signals, decision: Decision) -> Damage | None:
        """What else makes a step bad: squares that overflow, buffers, a loss of NaN, a spike; ``None`` for a good one.

        Gradients are finite here.
        """
        layout = decision.measurement.layout
        num_params = len(layout.params)
        if found.total >= self._squares.smallest:
            fatal = self._squares.fatal(decision.clips.after(decision.measurement))  # as the optimizer would get them
            if fatal:
                return Damage({}, {}, num_params, fatal=fatal)
        if found.buffers is not None and not math.isfinite(found.buffers):
            names = self.recovery.buffers.not_finite()  # host syncs: only a doubtful step gets here
            if self.recovery.together.any(bool(names), layout.params):
                return Damage({}, {}, num_params, buffers=names or ("on another process",))
        if found.loss is not None and math.isnan(found.loss):
            return Damage({}, {}, num_params, loss=found.loss)
        if self.guard.spikes is None:
            return None
        self.spike = self.guard.find_spike(found.total, found.loss)
        if self.spike is not None and self.guard.spikes.drop:
            return Damage({}, {}, num_params, spike=self.spike)
        return None

    def _let_through(self, step: int, found: Signals) -> None:
        self.moved = True
        if self.guard.streak:
            self.guard.good_step()
            self._of_streak = None
        if self.recovery.buffers.names or self.recovery.snapshot is not None:
            self.recovery.good_step(step)
        self._history.append((step, found.total, "clipped" if found.coefficient < 1.0 else "ok"))

    def _drop(
        self,
        step: int,
        measurement: Measurement,
        damage: Damage,
        scaler: GradScaler | None,
        error: BaseException | None = None,
    ) -> Dropped:
        """Drops a step: leaves it to the scaler if that is its business, else sees to it that nothing comes of it."""
        self.moved = False
        self._history.append((step, float(measurement.total), damage.cause))  # host sync: a bad step
        if (
            scaler is not None and damage.cause in ("nan", "inf") and self.guard.leaves_to_scaler(scaler.get_scale())
        ):  # host sync: rare
            self.recovery.overflow_step()
            return Dropped(measurement, damage, "overflow")
        must_end = self.guard.bad_step()
        self.should_stop = self.should_stop or self.guard.action == "stop"
        try:
            self._save_incident(step, measurement, damage, scaler, error)
        finally:
            self.recovery.buffers.restore_()  # before a Ctrl-C in the save goes on its way
        for parameter in measurement.layout.params:
            parameter.grad = None  # zeros would still move weights, through momentum and weight decay
        verdict: Verdict = "rolled_back" if self.recovery.bad_step(self.guard.streak) else "skipped"
        nowhere = self.recovery.gets_nowhere
        if must_end or nowhere is not None:
            return Dropped(
                measurement, damage, verdict, NonFiniteGradientError(self._last_words(damage, step, nowhere, scaler))
            )
        self._dropped = DroppedStep(self._optimizers.layers, scaled=scaler is not None)
        self.has_told_optimizer = True
        return Dropped(measurement, damage, verdict)

    def drop_raised(self, step: int, layout: Layout, what: str, error: BaseException | None = None) -> Dropped:
        """Drops a step that has ended in an exception before its gradients could be judged.

        Args:
            step: which one.
            layout: its parameters.
            what: was not finite, in words.
            error: the exception.
        """
        self.recovery.begin_step()
        damage = Damage({}, {}, len(layout.params), raised=what)
        dropped = self._drop(step, _nothing(layout), damage, None, error)
        self.end_step()  # the exception has ended the optimizer's step already: there is none to come
        return dropped

    def save_raised(self, step: int, layout: Layout, error: BaseException) -> str:
        """Saves a step that has raised on this process alone, and will end its run; returns what was saved, in words.

        Args:
            step: which one.
            layout: its parameters.
            error: the exception.
        """
        self._save_incident(step, _nothing(layout), Damage({}, {}, len(layout.params), raised=str(error)), None, error)
        return self.last_incident or ""

    def learn_late_steps(self, *, wait: bool = False) -> list[LateStep]:
        """Returns the bad ones among the steps left to the device, as far as the host knows by now, oldest first.

        Counts them. The list ends with the one that must end the run, if one must.

        Args:
            wait: for all of them; a host sync.
        """
        learned: list[LateStep] = []
        alike = self.recovery.together.several  # they ask each other about a bad one, and end the run together
        for waiting in self.on_device.learned(wait=wait, alike=alike) if self.on_device else ():
            damage = damage_of(waiting)
            if damage is not None:
                damage = self._blame_loss(damage, waiting.measurement.layout, waiting.told)
            self.moved = damage is None
            if damage is None:
                self.guard.good_step()
                self._history.append((waiting.step, float(waiting.signals[0]), "ok"))
                continue
            error = None
            if self.guard.bad_step():
                self.recovery.buffers.restore_()  # the forward pass of the present step has been through them
                error = NonFiniteGradientError(self._last_words(damage, waiting.step))
            learned.append(LateStep(waiting.step, Dropped(waiting.measurement, damage, "skipped", error)))
            if error is not None:
                break
        return learned

    def end_step(self) -> None:
        """Takes back, once the optimizer has stepped, what told it to leave the step out."""
        if self.on_device is not None:
            self.on_device.release()
        if self._dropped is not None:
            self._dropped.end()
            self._dropped = None
        self.has_told_optimizer = False

    def ends_dropped_step(self, error: Exception, *, wants_gradients: bool = False) -> bool:
        """Tells whether an optimizer has failed for want of gradients that were dropped; then its step is over.

        Args:
            error: that was raised.
            wants_gradients: whether it is known that something else has, which stands before the step.
        """
        if self._dropped is None or not (wants_gradients or self._dropped.has_failed(error)):
            return False
        self.end_step()
        return True

    def take_spike(self, record: StepRecord) -> Finding | None:
        """Returns the spike of the step at hand as the views show it, once."""
        spike, self.spike = self.spike, None
        if spike is None:
            return None
        return Finding(
            rule="spike",
            severity="warning",
            message=spike,
            step=record.step,
            causes=("an unusual batch", "a learning rate near the edge of stability"),
            remedies=("clip gradients with an adaptive policy", "let the guard drop spikes", "lower the learning rate"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the guard's memory of bad steps."""
        return self.guard.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; an empty state, of a run without a guard, starts fresh."""
        if state:
            self.guard.load_state_dict(state)

    def _saved_in_words(self) -> str:
        """What was saved of the step, or else of the first one of its streak that was."""
        if self.last_incident:
            return f" {self.last_incident}"
        return f" Of the same streak: {self._of_streak}" if self._of_streak else ""

    def _save_incident(
        self,
        step: int,
        measurement: Measurement,
        damage: Damage,
        scaler: GradScaler | None,
        error: BaseException | None,
    ) -> None:
        self.last_incident = None
        if self._incidents is not None:
            self.last_incident = self._incidents.part.run(
                self._incidents.save,
                step=step,
                optimizer=self._optimizers.plain[0],
                optimizer_index=self._index,
                action=self.guard.action,
                cause=damage.cause,
                layout=measurement.layout,
                gradients=measurement.grads,
                bad_names=damage.names,
                bad_buffers=damage.buffers,
                history=tuple(self._history),
                buffers=self.recovery.buffers.named(),
                scaler=scaler,
                error=error,
            )
            self._of_streak = self._of_streak or self.last_incident

    def _last_words(
        self, damage: Damage, step: int, nowhere: str | None = None, scaler: GradScaler | None = None
    ) -> str:
        patience = f" This was bad step {self.guard.streak} in a row (patience)."
        why = f" It was {nowhere}." if nowhere else "" if self.guard.action == "raise" else patience
        what = f"gradient of {damage.describe()}" if damage.cause in ("nan", "inf") else damage.describe()
        if self.recovery.has_nonfinite_weights():
            likely = f" {self.recovery.remedy_of_nonfinite_weights()}"
        elif scaler is not None and not scaler.get_scale():  # host sync: the run ends
            likely = (
                " The loss scale is 0, and a gradient is NaN once that is divided out: overflows have halved it again "
                "and again. Start with a fresh GradScaler (a saved one goes on at 0), and train in bfloat16 if it "
                "shrinks once more."
            )
        elif damage.loss is not None:
            likely = " Likely causes: a mean over nothing (every label ignored), division of zero by zero, a bad batch."
        else:
            likely = " Likely causes: a learning rate that is too high, a bad batch, log or sqrt or division at zero."
        return (
            f"{what}; step {step}, optimizer {self._index}.{why} No weight was moved by it.{likely}"
            f"{self._saved_in_words()}"
        )


def _nothing(layout: Layout) -> Measurement:
    """What is known of the gradients of a step that never came so far."""
    norms = torch.full((len(layout.params),), math.nan, device="cpu")
    return Measurement(layout, (None,) * len(layout.params), norms, norms.new_tensor(math.nan))
