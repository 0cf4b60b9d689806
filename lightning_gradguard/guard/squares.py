"""Gradients that are finite and fatal: an adaptive optimizer keeps their squares, and these are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_gradguard.measurement.measurement import Measurement

# Settings by which optimizers that average squares of gradients are known before they have any state: the families of
# Adam, RMSprop, Adadelta, Adagrad, and torch's and others' Adafactor.
_SETTINGS = frozenset({"betas", "centered", "rho", "initial_accumulator_value", "beta2_decay", "decay_rate"})


class Squares:
    """Knows from which size on an element of a gradient would stay in an optimizer's averages for ever.

    A finite 1e25 makes the second moment of Adam infinite, since its square overflows float32: that weight never moves
    again, and nothing else shows it. From the square root of the largest number on (1.8e19 in float32 and bfloat16) an
    element is fatal; in float16, of which an optimizer keeps (1 - beta2) g^2, from sqrt(65504 / (1 - beta2)) on.

    Args:
        optimizers: whose steps are to be looked at.

    Attributes:
        smallest: the smallest such size; infinite where no optimizer keeps squares.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> f"{Squares([torch.optim.Adam([weight])]).smallest:.2g}"
        '1.8e+19'
        >>> Squares([torch.optim.SGD([weight], lr=0.1)]).smallest
        inf
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._limits = {
            id(parameter): _limit(group, parameter.dtype)
            for optimizer in optimizers
            for group in optimizer.param_groups
            if not _SETTINGS.isdisjoint(group)
            for parameter in group["params"]
            if parameter.is_floating_point() or parameter.is_complex()
        }
        self.smallest = min(self._limits.values(), default=math.inf)

    def fatal(self, measurement: Measurement) -> dict[str, float]:
        """Returns the largest element of each gradient that has a fatal one, by name.

        A pass over the gradients and a host read: for the rare step whose norm is that large.

        Args:
            measurement: of the gradients as the optimizer gets them.
        """
        largest = measurement.max_abs.tolist()  # host sync: rare
        layout = measurement.layout
        return {
            name: size
            for name, parameter, size in zip(layout.names, layout.params, largest, strict=True)
            if size >= self._limits.get(id(parameter), math.inf)
        }


def _limit(group: Mapping[str, Any], dtype: torch.dtype) -> float:
    largest = torch.finfo(dtype).max
    share = 1.0
    if dtype == torch.float16:
        betas = group.get("betas", ())
        share = 1.0 - (float(betas[1]) if len(betas) > 1 else float(group.get("alpha", 0.0)))
    return math.sqrt(largest / share) if share > 0 else math.inf
