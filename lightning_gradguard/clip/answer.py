"""What a policy calculates with, and what it answers.

A policy over one number of each step (its norm) is written once, with the functions of this file and the operators
``+ - * < &``. On the CPU its numbers are floats, in double precision: torch would take some microseconds for each
operator. On a device they are tensors of shape ``[]`` in single precision, and the host never waits for one. Which of
the two runs a policy need not know. ``/``, ``if`` and the functions of :mod:`math` are for floats alone: use
:func:`divide` and :func:`where`, and what is here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import mul
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_gradguard.arguments import By
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.unit_norms import UnitNorms

# A float, int or bool on the host; a tensor of shape [] on a device. (Any: operators mix both.)
Number: TypeAlias = Any


LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny  # that is not subnormal
# What is scaled by where the norm is not known, since it overflowed: a gradient of 2^30 largest elements ends below 1.
_UNKNOWN = 2.0**-143
_ONES = {dtype: torch.ones((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}
floats_on_cpu = True  # else numbers on the CPU are tensors, too, as on a device


_TENSORS = ("threshold", "coefficient", "bound", "beyond", "changes")  # of an answer, that somebody may write to


@dataclass(frozen=True, eq=False)
class Clip:
    """A policy's answer to one measurement: what to do to the gradients, as device tensors.

    Of ``coefficient``, ``bound``, ``units`` and ``by_unit`` one is set; none means *leave them alone*.

    Attributes:
        threshold: what the policy compared with, a float or a tensor of shape ``[]``: a norm, or a largest absolute
            element; ``None`` for a policy with one threshold per tensor or unit.
        coefficient: multiply gradients by it, in [0, 1]: shape ``[]``, or ``[num_params]``.
        bound: clamp elements to [-bound, bound]: a float, or a tensor of shape ``[]`` or ``[num_params]``.
        beyond: multiply what lies beyond the bound by it instead, in [0, 1], ``[num_params]``; the bound is a tensor of
            that shape then.
        units: for each parameter a coefficient that broadcasts over its gradient (over the values of a coalesced
            sparse one), ``None`` where untouched.
        by_unit: norms of units with a factor for each, in place of ``units``, from a policy that asked for them: they
            are spread when gradients are multiplied, and tell what is left of these without another look.
        changes: whether the gradients change at all, a boolean of shape ``[]``, from a policy that knows it; otherwise
            :func:`is_clipped` finds out.
        then: what to do after this, for a chain of policies.
    """

    threshold: float | Tensor | None = None
    coefficient: Tensor | None = None
    bound: float | Tensor | None = None
    beyond: Tensor | None = None
    units: Sequence[Tensor | None] | None = None
    by_unit: Sequence[tuple[UnitNorms, Tensor]] | None = None
    changes: Tensor | None = None
    then: Clip | None = None
    _made: list[tuple[Tensor, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # torch counts the writes to a tensor and to all views of it; the host reads no value.
        made = []
        for value in (self.threshold, self.coefficient, self.bound, self.beyond, self.changes):
            if isinstance(value, Tensor):
                made.append((value, value._version))
        object.__setattr__(self, "_made", made)

    def refuse_writes(self, policy: object) -> None:
        """Sees to it that the answer is still what its policy made it.

        Raises:
            RuntimeError: if one of its tensors was written to since, as by a policy that answers with its state.
        """
        for value, version in self._made:
            if value._version != version:
                written = next(name for name in _TENSORS if getattr(self, name) is value)
                raise RuntimeError(
                    f"{type(policy).__name__}.decide wrote to the {written} of its answer after making it, so that it "
                    "is no longer what gradients were compared with: write the state in place before, or answer with "
                    "a clone"
                )


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """Calculates with tensors on the CPU, too, as a device does: for whoever compares the two."""
    global floats_on_cpu
    floats_on_cpu = False
    try:
        yield
    finally:
        floats_on_cpu = True


def number(value: Tensor) -> Number:
    """Returns a tensor of shape ``[]`` as a policy calculates with it: a float if it lies on the CPU, else itself."""
    # A read of the host's own memory, which waits for nobody. A fake tensor has no number to read.
    return value.item() if floats_on_cpu and value.device.type == "cpu" and type(value) is Tensor else value.float()


def where(condition: Number, one: Number, other: Number) -> Number:
    """Returns the one number where the condition holds, else the other."""
    if not isinstance(condition, Tensor):
        return one if condition else other
    if isinstance(other, Tensor) and not isinstance(one, Tensor):  # torch would make a tensor of the number first
        return other.masked_fill(condition, one)
    return torch.where(condition, one, other)


def clamp(value: Number, lowest: float = -math.inf, highest: float = math.inf) -> Number:
    """Returns the number, or the limit it lies beyond; NaN stays NaN."""
    if isinstance(value, Tensor):
        return value.clamp(lowest, highest)
    return lowest if value < lowest else highest if value > highest else value


def minimum(one: Number, other: Number) -> Number:
    """Returns the smaller of two numbers."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.minimum(one, other)
    return where(one < other, one, other)


def maximum(one: Number, other: Number) -> Number:
    """Returns the larger of two numbers."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.maximum(one, other)
    return where(one > other, one, other)


def divide(one: Number, other: Number) -> Number:
    """Returns the quotient, infinite or NaN where the divisor is zero."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one / other
    if other:
        return one / other
    return math.nan if not one or one != one else math.copysign(math.inf, one)


def lerp(start: Number, end: Number, weight: Number) -> Number:
    """Returns ``start + weight * (end - start)``: a running mean that takes ``end`` in."""
    if isinstance(start, Tensor) and isinstance(end, Tensor):
        return torch.lerp(start, end, weight)
    return start + weight * (end - start)


def plus_product(start: Number, one: Number, other: Number, factor: float = 1.0) -> Number:
    """Returns ``start + factor * one * other``."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.addcmul(start, one, other, value=factor)
    return start + factor * one * other


def products(numbers: Sequence[Number], factors: Sequence[float]) -> Sequence[Number]:
    """Returns each number times its factor; on a device all of them by one kernel.

    Example:
        >>> products((3.0, 5.0), (2.0, 0.1))
        (6.0, 0.5)
    """
    if isinstance(numbers[0], Tensor):
        return torch._foreach_mul(list(numbers), list(factors))
    return tuple(map(mul, numbers, factors))


def sqrt(value: Number) -> Number:
    """Returns the square root of a number >= 0."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def without_nan(value: Number, instead: float) -> Number:
    """Returns the number, or another one in the place of NaN."""
    if isinstance(value, Tensor):
        return value.nan_to_num(nan=instead)
    return value if value == value else instead


def norm_coefficient(norm: Number, threshold: Number, eps: float = 0.0) -> Number:
    """Returns ``min(1, threshold / (norm + eps))``, safe where the norm is zero or not finite.

    Exactly 1 at and below the threshold (with ``eps = 0``), also at norms far below 1e-6. An infinite threshold gives
    1, never ``inf / inf``. A norm that overflowed although every element is finite is not known: what is left then lies
    far below the threshold, with its direction. Wherever the host looks at each step (on the CPU, and with a guard)
    such a norm is measured exactly instead, and brought to its threshold.

    Args:
        norm: a number, or a tensor of shape ``[num_params]``; >= 0.
        threshold: >= 0, infinite for *no limit*; broadcasts with ``norm``.
        eps: what torch's ``clip_grad_norm_`` and the papers' code built on it add to the norm: 1e-6.
    """
    if isinstance(norm, Tensor):
        lowest = _SMALLEST if floats_on_cpu and norm.device.type == "cpu" else _UNKNOWN
        lowest = torch.finfo(torch.float64).tiny if norm.dtype == torch.float64 else lowest
    else:
        lowest = _UNKNOWN if norm == math.inf else sys.float_info.min
    ratio = clamp(divide(threshold, norm + eps if eps else norm), lowest, 1.0)
    return without_nan(ratio, 1.0)


def observed(measurement: Measurement, by: By) -> tuple[Number, Number]:
    """Returns the number an adaptive policy follows, and the total norm, which tells whether the step is finite.

    Args:
        measurement: of this step.
        by: ``"norm"`` for the total norm, ``"value"`` for the largest absolute element.
    """
    total = number(measurement.total)
    if by == "norm":
        return total, total
    largest = measurement.max_abs
    return (number(largest.amax()) if largest.numel() else total), total


def limited(
    measurement: Measurement, by: By, level: Number, threshold: Number, target: Number, eps: float = 0.0
) -> Clip:
    """Returns the clip that brings what :func:`observed` gave down to ``target``: by scaling, or by clamping elements.

    Args:
        measurement: of this step.
        by: what was observed.
        level: what it was.
        threshold: what it was compared with, for the record.
        target: where it shall be afterwards; infinite for *leave it alone*.
        eps: see :func:`norm_coefficient`.
    """
    # On a device a policy's number is in single precision; what was measured may be in double, and too large for that.
    norm = measurement.total if isinstance(level, Tensor) else level
    change = norm_coefficient(norm, target, eps) if by == "norm" else target
    change = filled(measurement.total, change)
    return Clip(threshold=threshold, coefficient=change) if by == "norm" else Clip(threshold=threshold, bound=change)


def filled(like: Tensor, value: Number) -> Tensor:
    """Returns a number >= 0 as a tensor of shape ``[]`` beside another one."""
    if isinstance(value, Tensor):
        return value
    if value == 1.0 and like.device.type == "cpu" and type(like) is Tensor:
        one = _ONES.get(like.dtype)
        if one is not None and one._version == 0:  # nobody has written to it
            return one  # most steps are left alone: no operator for them
    if like.dtype != torch.float64 and 0.0 < value < _SMALLEST:  # zero in single precision, on some processors
        return like.new_full((), value, dtype=torch.float64)
    too_large = LARGEST < value < math.inf and like.dtype != torch.float64  # infinite in single precision
    return like.new_full((), math.inf if too_large else value)  # filled, which is no copy to a device
