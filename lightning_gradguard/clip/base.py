"""What a clipping policy is, what it answers, and how the answer is carried out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradguard.arguments import By
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

State = dict[str, Tensor]

LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny  # that is not subnormal


@dataclass(frozen=True, eq=False)
class Clip:
    """A policy's answer to one measurement: what to do to the gradients, as device tensors.

    Of ``coefficient``, ``bound`` and ``units`` one is set; none means *leave them alone*.

    Attributes:
        threshold: what the policy compared with, shape ``[]``: a norm, or a largest absolute element; ``None`` for a
            policy with one threshold per tensor or unit.
        coefficient: multiply gradients by it, in [0, 1]: shape ``[]``, or ``[num_params]``.
        bound: clamp elements to [-bound, bound]: a float, or a tensor of shape ``[]`` or ``[num_params]``.
        beyond: multiply what lies beyond the bound by it instead, in [0, 1], ``[num_params]``; the bound is a tensor of
            that shape then.
        units: for each parameter a coefficient that broadcasts over its gradient (over the values of a coalesced
            sparse one), ``None`` where untouched.
        changes: whether the gradients change at all, a boolean of shape ``[]``, from a policy that knows it; otherwise
            :func:`is_clipped` finds out.
        then: what to do after this, for a chain of policies.
    """

    threshold: Tensor | None = None
    coefficient: Tensor | None = None
    bound: float | Tensor | None = None
    beyond: Tensor | None = None
    units: Sequence[Tensor | None] | None = None
    changes: Tensor | None = None
    then: Clip | None = None


class ClipPolicy(ABC):
    """Decides how far the gradients of one optimizer step are cut back.

    A policy object holds settings and nothing else; one object may serve several optimizers. What it remembers is a
    flat dict of tensors that the pipeline keeps for each optimizer, hands to :meth:`decide`, and puts into the
    checkpoint. Everything stays on the device: a policy never reads a value on the host.

    Attributes:
        per_parameter: keys of the state whose first dimension is the layout's parameters; they are stored by name,
            and follow their parameters when the layout changes.
    """

    per_parameter: tuple[str, ...] = ()

    @abstractmethod
    def init_state(self, layout: Layout, device: torch.device) -> State:
        """The complete state before the first step."""

    @abstractmethod
    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Answers one measurement and updates ``state``.

        A step whose total norm is not finite must leave the state as it was: it may be measured again, exactly, and
        decided again.
        """

    def check(self, layout: Layout) -> None:  # noqa: B027
        """Called when training starts: warns if the policy can do nothing with these parameters."""


def norm_coefficient(norm: Tensor, threshold: Tensor | float, eps: float = 0.0) -> Tensor:
    """``min(1, threshold / (norm + eps))`` on the device, safe where the norm is zero or not finite.

    Exactly 1 at and below the threshold (with ``eps = 0``), also at norms far below 1e-6. A norm that overflowed
    although every element is finite gets the coefficient of the largest float32, so the direction is kept, also where
    the processor takes subnormal numbers for zero. (With a guard such a step is measured exactly instead.) An infinite
    threshold gives 1, never ``inf / inf``.

    Args:
        norm: shape ``[]`` or ``[num_params]``, >= 0.
        threshold: >= 0, infinite for *no limit*; broadcasts with ``norm``.
        eps: what torch's ``clip_grad_norm_`` and the papers' code built on it add to the norm: 1e-6.
    """
    bounded = norm.clamp(max=LARGEST)
    ratio = threshold / (bounded + eps if eps else bounded)
    return ratio.clamp(min=_SMALLEST, max=1.0).nan_to_num(nan=1.0)


def observed(measurement: Measurement, by: By) -> Tensor:
    """The number an adaptive policy follows, shape ``[]``: the total norm, or the largest absolute element."""
    if by == "norm":
        return measurement.total
    largest = measurement.max_abs
    return largest.amax() if largest.numel() else measurement.total


def limited(measurement: Measurement, by: By, threshold: Tensor, target: Tensor, eps: float = 0.0) -> Clip:
    """The clip that brings what :func:`observed` gave down to ``target``: by scaling, or by clamping elements.

    Args:
        measurement: of this step.
        by: what was observed.
        threshold: what it was compared with, for the record.
        target: where it shall be afterwards; infinite for *leave it alone*.
        eps: see :func:`norm_coefficient`.
    """
    if by == "norm":
        return Clip(threshold=threshold, coefficient=norm_coefficient(measurement.total, target, eps))
    return Clip(threshold=threshold, bound=target)
