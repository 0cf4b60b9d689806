"""Lets a step through or drops it, as the guard has it, and puts right what a bad one spoiled."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.guard.damage import Damage
from lightning_gradguard.guard.guard import Guard, NonFiniteGradientError
from lightning_gradguard.guard.on_device import HeldSteps, damage_of, why_not_on_device
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.sharding import any_process
from lightning_gradguard.record import Finding, StepRecord, Verdict


class Gate:
    """What stands between the gradients of one optimizer and its step.

    Args:
        guard: counts bad steps and says what becomes of them.
        recovery: what puts buffers and weights back, shared by the gates of a model.
        optimizer: whose steps these are.
        optimizer_index: which optimizer this is, for messages.
        incidents: saves bad steps for replay; ``None`` saves nothing.

    Raises:
        ValueError: if the guard shall drop steps on the device, and that cannot be.

    Attributes:
        held: steps that are dropped on the device, if they are; ``None`` where each step is judged on the host.
        moved: whether the last step was let through: not dropped, nor left to a scaler that drops it.
        should_stop: whether the guard's action is to stop, and a bad step was met.
        spike: what is far above the usual in the step at hand, in words.
        last_incident: what was saved of the last bad step, in words; ``None`` if nothing was.
    """

    def __init__(
        self,
        guard: Guard,
        recovery: Recovery,
        optimizer: torch.optim.Optimizer,
        optimizer_index: int = 0,
        incidents: BlackBox | None = None,
    ) -> None:
        self.guard = guard
        self.recovery = recovery
        self.moved = True
        self.should_stop = False
        self.spike: str | None = None
        self.last_incident: str | None = None
        self._optimizer = optimizer
        self._index = optimizer_index
        self._incidents = incidents
        self._history: deque[tuple[int, float, str]] = deque(maxlen=20)
        self.held = HeldSteps(optimizer, recovery.buffers) if self._holds() else None

    def _holds(self) -> bool:
        params = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        reason = "incidents are saved on the host" if self._incidents else why_not_on_device(self._optimizer, params)
        if self.guard.on_device and reason is not None:
            raise ValueError(f"on_device=True cannot drop steps on the device: {reason}; pass on_device=None")
        on_cuda = bool(params) and all(parameter.device.type == "cuda" for parameter in params)
        return reason is None and (on_cuda if self.guard.on_device is None else self.guard.on_device)

    def doubts(self, total: Tensor, loss: Tensor | float | None) -> dict[str, Tensor]:
        """What else may be wrong with a step whose gradients are fine, on the device, the same on every process."""
        self.recovery.before_step()
        doubts: dict[str, Tensor] = {}
        if (sum_of_buffers := self.recovery.buffers.total()) is not None:
            doubts["buffers"] = sum_of_buffers.to(total)
        if loss is not None and self.guard.watches_loss:
            doubts["loss"] = torch.as_tensor(loss).detach().to(total)
        return mean_over_processes(doubts)

    def look_beyond_gradients(self, total: float, doubts: Mapping[str, float], layout: Layout) -> Damage | None:
        """Damage to buffers by the forward pass, and spikes; ``None`` for a good step."""
        num_params = len(layout.params)
        if not math.isfinite(doubts.get("buffers", 0.0)):
            spoiled = self.recovery.buffers.spoiled()  # host syncs: only a doubtful step gets here
            if any_process(bool(spoiled), layout.params):
                return Damage({}, {}, num_params, buffers=spoiled or ("on another process",))
        self.spike = self.guard.find_spike(total, doubts.get("loss"))
        if self.spike is not None and self.guard.spikes is not None and self.guard.spikes.drop:
            return Damage({}, {}, num_params, spike=self.spike)
        return None

    def good_step(self, step: int, total: float, *, clipped: bool) -> None:
        """Lets a step through."""
        self.moved = True
        self.guard.good_step()
        self.recovery.good_step(step)
        self._history.append((step, total, "clipped" if clipped else "ok"))

    def late(self, *, wait: bool = False) -> Iterator[tuple[int, Measurement, Damage, NonFiniteGradientError | None]]:
        """The bad ones among the steps that were held, as far as the host knows by now, oldest first.

        Args:
            wait: for all of them; a host sync.

        Yields:
            Step, what was measured of it, what was wrong, and the error that must end the run, if it must.
        """
        for held in self.held.learned(wait=wait) if self.held else ():
            damage = damage_of(held)
            self.moved = damage is None
            if damage is None:
                self.guard.good_step()
                self._history.append((held.step, float(held.facts[0]), "ok"))
                continue
            must_end = self.guard.bad_step()
            error = NonFiniteGradientError(self._last_words(damage, held.step)) if must_end else None
            if must_end:
                self.recovery.buffers.restore_()  # the forward pass of the present step has been through them
            yield held.step, held.measurement, damage, error

    def drop(
        self, step: int, measurement: Measurement, damage: Damage, scaler: GradScaler | None
    ) -> tuple[Verdict, NonFiniteGradientError | None]:
        """Drops a step: leaves it to the scaler if that is its business, else takes its gradients away.

        Returns:
            What became of the step, and the error that must end the run, if it must.
        """
        self.moved = False
        self._history.append((step, float(measurement.total), damage.cause))  # host sync: a bad step
        if scaler is not None and damage.nan and self.guard.leaves_to_scaler(scaler.get_scale()):  # host sync: rare
            self.recovery.overflow_step()
            return "overflow", None
        must_end = self.guard.bad_step()
        self.should_stop = self.should_stop or self.guard.action == "stop"
        self._save_incident(step, measurement, damage, scaler)
        for parameter in measurement.layout.params:
            parameter.grad = None  # zeros would still move weights, through momentum and weight decay
        dropped_as: Verdict = "rolled_back" if self.recovery.bad_step(self.guard.streak) else "skipped"
        return dropped_as, NonFiniteGradientError(self._last_words(damage, step)) if must_end else None

    def take_spike(self, record: StepRecord) -> Finding | None:
        """The spike of the step at hand as the views show it, once."""
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

    def _save_incident(self, step: int, measurement: Measurement, damage: Damage, scaler: GradScaler | None) -> None:
        self.last_incident = None
        if self._incidents is not None:
            self.last_incident = self._incidents.part.run(
                self._incidents.save,
                step=step,
                optimizer=self._optimizer,
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
            )

    def _last_words(self, damage: Damage, step: int) -> str:
        why = "" if self.guard.action == "raise" else f" This was bad step {self.guard.streak} in a row (patience)."
        what = f"gradient of {damage.describe()}" if damage.nan else damage.describe()
        ruined = (
            " A parameter is not finite, so dropping steps cannot help: use rollback, or go back to a checkpoint."
            if self.recovery.ruined()
            else " Likely causes: a learning rate that is too high, a bad batch, log or sqrt or division at zero."
        )
        saved = f" {self.last_incident}" if self.last_incident else ""
        return f"{what}; step {step}, optimizer {self._index}.{why} No weight was moved by it.{ruined}{saved}"


def mean_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their means, by one all-reduce; unchanged where there is one process, or nothing to agree upon."""
    if not values or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    together = torch.stack(list(values.values())) / dist.get_world_size()
    dist.all_reduce(together)
    return dict(zip(values, together.unbind(), strict=True))
