"""Bad steps dropped on the device, and found out on the host later: for fused optimizers, without a host sync."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradguard.guard.buffers import Buffers
from lightning_gradguard.guard.damage import Damage
from lightning_gradguard.guard.verdict import Signals
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.sharding import is_distributed


@dataclass(frozen=True)
class WaitingStep:
    """A step of which the host does not know yet how it went.

    Attributes:
        step: which one.
        measurement: of it, without the gradients, which are long gone when this is read.
        signals: total norm, NaN for a bad step, smallest coefficient, and the loss where it is known; on the host once
            ``done`` says so.
        has_loss: whether it is known.
        told: the loss of this process alone, where a NaN loss tells the other processes so by its gradients.
        done: the copy to the host; ``None`` where there was nothing to copy.
    """

    step: int
    measurement: Measurement
    signals: Tensor
    has_loss: bool
    told: Tensor | None
    done: torch.cuda.Event | None


class DeviceDropper:
    """Tells a fused optimizer, through ``found_inf``, to leave out a step; queues what the host has to learn of it.

    Fused optimizers read the tensor ``found_inf`` in their kernel: where it is not zero, no weight, moment or step
    counter moves. That is what ``GradScaler`` relies on, so nothing is dropped on the device beside a live one.

    Args:
        optimizers: fused ones.
        buffers: what a bad forward pass may have spoiled; put back on the device as well.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], buffers: Buffers) -> None:
        self._optimizers = list(optimizers)
        self._buffers = buffers
        self._queue: deque[WaitingStep] = deque()

    def drop_if_bad_(self, step: int, measurement: Measurement, signals: Signals, told: Tensor | None = None) -> Tensor:
        """Has the optimizer leave the step out if it is bad.

        Args:
            step: which one, for the record that is made later.
            measurement: of it.
            signals: of it.
            told: the loss of this process alone, for the record; the step is not judged by it.

        Returns:
            ``[total norm, smallest coefficient, ...]``, the first NaN for a bad step.
        """
        # Zero for a good step and NaN for a bad one: as few kernels as tell it (isfinite alone launches four).
        doubt = signals.total * 0.0
        if signals.buffers is not None:
            doubt = doubt + signals.buffers * 0.0
        if signals.loss is not None:
            doubt = doubt.masked_fill(signals.loss.isnan(), torch.nan)
        loss = [] if signals.loss is None else [signals.loss]
        masked = torch.stack([signals.total + doubt, signals.coefficient, *loss])
        bad = doubt.ne_(0.0).float()  # 1 and 0, in single precision as the optimizers' kernels read it
        if self._buffers.names:
            self._buffers.keep_or_restore_(bad.bool())
        for optimizer in self._optimizers:
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        on_host, done = _copy_to_host(masked)
        self._queue.append(WaitingStep(step, measurement.without_gradients(), on_host, bool(loss), told, done))
        return masked

    def release(self) -> None:
        """Takes the flag away, once the optimizer has stepped or for a step that is judged on the host."""
        for optimizer in self._optimizers:
            optimizer.__dict__.pop("found_inf", None)

    def learned(self, *, wait: bool = False, alike: bool = False) -> Iterator[WaitingStep]:
        """Returns the steps that the host can know of by now, oldest first, each once.

        Args:
            wait: for all of them; a host sync.
            alike: whether every process is to learn of the same steps: of all but the last one, whose work was begun a
                whole step ago, so that there is little to wait for.
        """
        while self._queue:
            if alike and not wait and len(self._queue) == 1:
                return
            done = self._queue[0].done
            if done is not None and not done.query():
                if not (wait or alike):
                    return
                done.synchronize()
            yield self._queue.popleft()


def damage_of(waiting: WaitingStep) -> Damage | None:
    """Returns what was wrong with a step, as far as norms tell; ``None`` for a good one. Host syncs for a bad one."""
    if bool(waiting.signals[0].isfinite()):
        return None
    measurement, names = waiting.measurement, waiting.measurement.layout.names
    norms = measurement.norms.tolist()
    nan = {name: int(norm != norm) for name, norm in zip(names, norms, strict=True) if not abs(norm) < torch.inf}
    if not nan and bool(measurement.total.isfinite()):
        if waiting.has_loss and bool(waiting.signals[2].isnan()):
            return Damage({}, {}, sum(measurement.present), loss=float(waiting.signals[2]))
        return Damage({}, {}, sum(measurement.present), buffers=("which one is not known",))
    if not nan:  # only their sum overflowed
        nan = {names[int(measurement.norms.argmax())]: 0}
    inf = {name: int(not is_nan) for name, is_nan in nan.items()}
    return Damage(nan, inf, sum(measurement.present), counted=False)


def _copy_to_host(signals: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if signals.device.type != "cuda" or not torch.cuda.is_available():  # fake tensors need no device to be there
        return signals, None
    on_host = torch.empty(signals.shape, dtype=signals.dtype, device="cpu", pin_memory=True)
    on_host.copy_(signals, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return on_host, done


def why_not_on_device(optimizers: Sequence[torch.optim.Optimizer], params: Sequence[Tensor]) -> str | None:
    """Tells why bad steps of these optimizers cannot be dropped on the device; ``None`` where they can."""
    for optimizer in optimizers:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return f"{type(optimizer).__name__} does not read found_inf: make it with fused=True"
    return "its parameters are sharded" if any(map(is_distributed, params)) else None
