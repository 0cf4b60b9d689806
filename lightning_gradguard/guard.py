"""Finite or not, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lightning_gradguard.measure import Measurement, count_nonfinite

Action = Literal["skip", "rollback", "stop", "raise"]


class NonFiniteGradientError(RuntimeError):
    """Training was ended because gradients were not finite; the message names step, optimizer and layers."""


@dataclass(frozen=True)
class Damage:
    """The non-finite elements of one step's gradients, counted.

    Attributes:
        nan: number of NaN elements of each affected parameter, by name; 0 where it has infinities only.
        inf: number of infinite elements of each affected parameter, by name.
        num_params: how many parameters had a gradient.
    """

    nan: dict[str, int]
    inf: dict[str, int]
    num_params: int

    @property
    def names(self) -> tuple[str, ...]:
        """The affected parameters, in depth order."""
        return tuple(self.nan)

    @property
    def cause(self) -> Literal["nan", "inf"]:
        """``"nan"`` if there is one anywhere: it is what spreads."""
        return "nan" if any(self.nan.values()) else "inf"

    def describe(self) -> str:
        """The damage in words: how many parameters, and the first of them with their counts."""
        shown = [
            f"'{name}' ({self.nan[name]} NaN, {self.inf[name]} Inf)"
            if self.nan[name]
            else f"'{name}' ({self.inf[name]} Inf)"
            for name in self.names[:5]
        ]
        rest = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        where = (
            "every parameter is affected, which points at the loss, the forward pass or the input"
            if len(self.names) == self.num_params
            else f"{len(self.names)} of {self.num_params} parameters are affected"
        )
        return f"{', '.join(shown)}{rest}; {where}"


def inspect(measurement: Measurement) -> Damage | None:
    """Looks at a measurement whose total is not finite, element by element.

    Returns:
        The damage; ``None`` if every element is finite and only the norm overflowed.
    """
    layout = measurement.layout
    finite = measurement.norms.isfinite().tolist()  # host sync: a bad step is no quiet step
    counts = torch.zeros(len(finite), 2, dtype=torch.int64, device=measurement.norms.device)
    for index, (grad, fine) in enumerate(zip(measurement.grads, finite, strict=True)):
        if grad is not None and not fine:
            counts[index] = torch.tensor(count_nonfinite(grad))
    if layout.sharding:
        counts = layout.sharding.sum(counts).ceil().long()
    nan: dict[str, int] = {}
    inf: dict[str, int] = {}
    for name, (num_nan, num_inf) in zip(layout.names, counts.tolist(), strict=True):
        if num_nan or num_inf:
            nan[name], inf[name] = num_nan, num_inf
    return Damage(nan, inf, sum(measurement.present)) if nan else None


class Guard:
    """Counts bad steps and says what becomes of them.

    Args:
        action: ``"skip"`` drops the step: no weight, momentum or step counter moves. ``"stop"`` drops it and ends
            training in order. ``"raise"`` drops it and raises :class:`NonFiniteGradientError`.
        patience: bad steps in a row after which ``"skip"`` raises as well, >= 1. 20 lets a rare bad batch pass and
            ends a run that will not recover before it has wasted much.

    Raises:
        ValueError: for an unknown action, or a patience below 1.
    """

    def __init__(self, action: Action = "skip", patience: int = 20) -> None:
        if action not in get_args(Action):
            raise ValueError(f"action must be one of {', '.join(map(repr, get_args(Action)))}, got {action!r}")
        if isinstance(patience, bool) or not isinstance(patience, int):
            raise TypeError(f"patience must be an int, got {type(patience).__name__}: {patience!r}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 bad step in a row, got {patience}")
        self.action = action
        self.patience = patience
        self.streak = 0

    def good_step(self) -> None:
        """Ends a streak of bad steps."""
        self.streak = 0

    def bad_step(self) -> bool:
        """Counts a bad step; tells whether the run must end with an error now."""
        self.streak += 1
        return self.action == "raise" or self.streak >= self.patience
