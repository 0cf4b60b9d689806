"""What a judge says of a step: let through, left to the device, or dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.guard.damage import Damage
from lightning_gradguard.guard.guard import NonFiniteGradientError
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.record import Verdict

Pair: TypeAlias = Tensor | tuple[float, float]  # total norm and smallest coefficient of a step; a vector may hold more


class Signals(NamedTuple):
    """All that a step is judged by: numbers of shape ``[]`` on the device, or floats once they are on the host.

    Attributes:
        total: norm of the whole gradient.
        coefficient: the smallest by which gradients are scaled; 0 or 1 where they are clipped in another way, or not.
        buffers: sum over the buffers that the forward pass may write; ``None`` where there are none.
        loss: of the step; ``None`` where it is not known.
    """

    total: Any
    coefficient: Any
    buffers: Any = None
    loss: Any = None


@dataclass(eq=False)
class Decision:
    """What the policies answer to a measurement: nothing is written to a gradient yet."""

    measurement: Measurement
    clips: Clips


@dataclass(eq=False)
class Passed:
    """A step that is let through.

    Attributes:
        decision: that holds for it.
        signals: ``[total norm, smallest coefficient, ...]`` of the step: floats for gradients on the CPU, else a vector
            on the device.
        clipped: whether its gradients have to be written to; where that is not known on the host, ``True``.
        damage: what is wrong with it, where the guard was told to let that through.
        nonfinite: whether it is known that its gradients are not finite, though nobody guards.
    """

    decision: Decision
    signals: Pair
    clipped: bool
    damage: Damage | None = None
    nonfinite: bool = False


@dataclass(eq=False)
class OnDevice(Passed):
    """A step that the device leaves out by itself if it is bad; the host learns of it later.

    Its total norm in ``signals`` is NaN for a bad one.
    """


@dataclass(eq=False)
class Over(Passed):
    """A step that was taken a while ago: its gradients are gone, and ``measurement`` holds numbers alone."""


@dataclass(eq=False)
class Dropped:
    """A step that moves no weight: its gradients are gone, or left to a loss scaler that drops them.

    Attributes:
        measurement: of it, from before its gradients were taken away.
        damage: what was wrong.
        verdict: what became of it.
        error: that must end the run, if it must.
    """

    measurement: Measurement
    damage: Damage
    verdict: Verdict
    error: NonFiniteGradientError | None = None


@dataclass(eq=False)
class LateStep:
    """A step that the device has left out, and of which the host has just learned."""

    step: int
    dropped: Dropped


Judgement = Passed | Dropped


def verdict_of(judgement: Judgement, *, nonfinite: bool, clipped: bool, scaled: bool) -> Verdict:
    """Returns the word for a step in its record, decided here and nowhere else.

    Args:
        judgement: what the judge said.
        nonfinite: whether its gradients were not finite.
        clipped: whether a policy changed them.
        scaled: whether a live loss scaler stands behind the step, which drops an overflow itself.
    """
    if isinstance(judgement, Dropped):
        return judgement.verdict
    if nonfinite:
        return "overflow" if scaled else "nonfinite"
    return "clipped" if clipped else "ok"
