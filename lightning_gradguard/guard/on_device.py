"""Bad steps dropped on the device, and found out on the host later: for fused optimizers, without a host sync."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_gradguard.guard.buffers import Buffers
from lightning_gradguard.guard.damage import Damage
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.sharding import is_distributed


@dataclass(frozen=True)
class HeldStep:
    """A step of which the host does not know yet how it went.

    Attributes:
        step: which one.
        measurement: of it, without the gradients, which are long gone when this is read.
        facts: total norm, NaN for a bad step, and smallest coefficient; on the host once ``done`` says so.
        done: the copy to the host; ``None`` where there was nothing to copy.
    """

    step: int
    measurement: Measurement
    facts: Tensor
    done: torch.cuda.Event | None


class HeldSteps:
    """Tells a fused optimizer, through ``found_inf``, to leave out a step; queues what the host has to learn of it.

    Fused optimizers read the tensor ``found_inf`` in their kernel: where it is not zero, no weight, moment or step
    counter moves. That is what ``GradScaler`` relies on, so there is no holding beside a live one.

    Args:
        optimizer: a fused one.
        buffers: what a bad forward pass may have spoiled; put back on the device as well.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, buffers: Buffers) -> None:
        self._optimizer = optimizer
        self._buffers = buffers
        self._queue: deque[HeldStep] = deque()

    def hold_(self, step: int, measurement: Measurement, facts: Tensor, doubts: Mapping[str, Tensor]) -> Tensor:
        """Has the optimizer leave the step out if it is bad.

        Returns:
            The facts, with a total norm of NaN for a bad step.
        """
        bad = ~facts[0].isfinite()
        if "buffers" in doubts:
            bad = bad | ~doubts["buffers"].isfinite()
        self._buffers.keep_or_restore_(bad)
        self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        facts = torch.stack([facts[0].masked_fill(bad, torch.nan), facts[1]])
        on_host, done = _copy_to_host(facts)
        kept = replace(measurement, grads=(None,) * len(measurement.grads))
        kept.__dict__["present"] = measurement.present
        self._queue.append(HeldStep(step, kept, on_host, done))
        return facts

    def release(self) -> None:
        """Takes the flag away, once the optimizer has stepped or for a step that is judged on the host."""
        self._optimizer.__dict__.pop("found_inf", None)

    def learned(self, *, wait: bool = False) -> Iterator[HeldStep]:
        """The steps that the host can know of by now, oldest first, each once.

        Args:
            wait: for all of them; a host sync.
        """
        while self._queue:
            done = self._queue[0].done
            if done is not None and not done.query():
                if not wait:
                    return
                done.synchronize()
            yield self._queue.popleft()


def damage_of(held: HeldStep) -> Damage | None:
    """What was wrong with a step, as far as norms tell; ``None`` for a good one. Host syncs for a bad one."""
    if bool(held.facts[0].isfinite()):
        return None
    measurement, names = held.measurement, held.measurement.layout.names
    norms = measurement.norms.tolist()
    nan = {name: int(norm != norm) for name, norm in zip(names, norms, strict=True) if not abs(norm) < torch.inf}
    if not nan and bool(measurement.total.isfinite()):
        return Damage({}, {}, sum(measurement.present), buffers=("which one is not known",))
    if not nan:  # only their sum overflowed
        nan = {names[int(measurement.norms.argmax())]: 0}
    inf = {name: int(not is_nan) for name, is_nan in nan.items()}
    return Damage(nan, inf, sum(measurement.present), counted=False)


def _copy_to_host(facts: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if facts.device.type != "cuda":
        return facts, None
    on_host = torch.empty(facts.shape, dtype=facts.dtype, pin_memory=True)
    on_host.copy_(facts, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return on_host, done


def why_not_on_device(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> str | None:
    """Why bad steps of this optimizer cannot be dropped on the device; ``None`` where they can."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return f"{type(optimizer).__name__} does not read found_inf: make it with fused=True"
    return "its parameters are sharded" if any(map(is_distributed, params)) else None
