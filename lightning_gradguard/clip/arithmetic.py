"""Arithmetic over single numbers: Python's where gradients lie in the host's memory, a device's elsewhere.

A policy over one number of each step (its norm) is written once, with these functions and the operators ``+ - * < &``.
On the CPU its numbers are floats, in double precision: torch would take some microseconds for each operator. On a
device they are tensors of shape ``[]`` in single precision, and the host never waits for one. Which of the two runs a
policy need not know. ``/``, ``if`` and the functions of :mod:`math` are for floats alone: use :func:`divide` and
:func:`where`, and what is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

# A float, int or bool on the host; a tensor of shape [] on a device. (Any: operators mix both.)
Number: TypeAlias = Any


LARGEST = torch.finfo(torch.float32).max
_SMALLEST = torch.finfo(torch.float32).tiny  # that is not subnormal
_on_host = True


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """Calculates with tensors on the CPU, too, as a device does: for whoever compares the two."""
    global _on_host
    _on_host = False
    try:
        yield
    finally:
        _on_host = True


def number(value: Tensor) -> Number:
    """Returns a tensor of shape ``[]`` as a policy calculates with it: a float if it lies on the CPU, else itself."""
    # A read of the host's own memory, which waits for nobody. A fake tensor has no number to read.
    return value.item() if _on_host and value.device.type == "cpu" and type(value) is Tensor else value.float()


def where(condition: Number, one: Number, other: Number) -> Number:
    """Returns the one number where the condition holds, else the other."""
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return one if condition else other


def clamp(value: Number, lowest: float = -math.inf, highest: float = math.inf) -> Number:
    """Returns the number, or the limit it lies beyond; NaN stays NaN."""
    if isinstance(value, Tensor):
        return value.clamp(lowest, highest)
    return lowest if value < lowest else highest if value > highest else value


def minimum(one: Number, other: Number) -> Number:
    """Returns the smaller of two numbers."""
    return torch.minimum(one, other) if _are_tensors(one, other) else where(one < other, one, other)


def maximum(one: Number, other: Number) -> Number:
    """Returns the larger of two numbers."""
    return torch.maximum(one, other) if _are_tensors(one, other) else where(one > other, one, other)


def divide(one: Number, other: Number) -> Number:
    """Returns the quotient, infinite or NaN where the divisor is zero."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one / other
    if other:
        return one / other
    return math.nan if not one or one != one else math.copysign(math.inf, one)


def lerp(start: Number, end: Number, weight: Number) -> Number:
    """Returns ``start + weight * (end - start)``: a running mean that takes ``end`` in."""
    return torch.lerp(start, end, weight) if _are_tensors(start, end) else start + weight * (end - start)


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

    Exactly 1 at and below the threshold (with ``eps = 0``), also at norms far below 1e-6. A norm that overflowed
    although every element is finite gets the coefficient of the largest float32, so the direction is kept, also where
    the processor takes subnormal numbers for zero. (With a guard such a step is measured exactly instead.) An infinite
    threshold gives 1, never ``inf / inf``.

    Args:
        norm: a number, or a tensor of shape ``[num_params]``; >= 0.
        threshold: >= 0, infinite for *no limit*; broadcasts with ``norm``.
        eps: what torch's ``clip_grad_norm_`` and the papers' code built on it add to the norm: 1e-6.
    """
    bounded = clamp(norm, highest=LARGEST)
    ratio = clamp(divide(threshold, bounded + eps if eps else bounded), _SMALLEST, 1.0)
    return without_nan(ratio, 1.0)


def _are_tensors(one: Number, other: Number) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor)
