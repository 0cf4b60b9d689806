"""The losses of the steps since the last record: mean, spread, and how many were not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_FOLD_EVERY = 64  # losses that are kept until they are folded together


class Losses:
    """Keeps losses on the device until a record asks; a quiet step costs the copy of one number.

    Example:
        >>> losses = Losses()
        >>> for value in (1.0, 3.0, float("nan")):
        ...     losses.add(torch.tensor(value))
        >>> losses.take()
        (2.0, 1.0, 1)
    """

    def __init__(self) -> None:
        self._new: list[Tensor] = []
        self._folded: Tensor | None = None  # number, mean, sum of squares around it, number of not finite ones

    def add(self, loss: Tensor) -> None:
        """Takes in the loss of one step."""
        self._new.append(loss)
        if len(self._new) == _FOLD_EVERY:
            self._fold()

    def take(self) -> tuple[float | None, float | None, int]:
        """Mean and standard deviation of the finite ones since the last call, and how many were not finite."""
        self._fold()
        if self._folded is None:
            return None, None, 0
        number, mean, squares, bad = self._folded.tolist()  # host sync: a logged step
        self._folded = None
        if number == 0:
            return math.nan, None, int(bad)
        return mean, math.sqrt(squares / number) if number > 1 else None, int(bad)

    def state(self) -> list[float]:
        """What was folded so far, as numbers."""
        self._fold()
        return [] if self._folded is None else self._folded.tolist()  # host sync: a checkpoint is written

    def load_state(self, state: Sequence[float]) -> None:
        """Goes on from :meth:`state`."""
        self._new, self._folded = [], torch.tensor(state, dtype=torch.float64) if state else None

    @torch.no_grad()
    def _fold(self) -> None:
        if not self._new:
            return
        values = torch.stack(self._new)
        values = values if values.device.type == "mps" else values.double()
        self._new = []
        finite = values.isfinite()
        number = finite.sum()
        mean = values.where(finite, 0.0).sum() / number.clamp(min=1)
        squares = (values - mean).where(finite, 0.0).square().sum()
        now = torch.stack([number.to(mean), mean, squares, (~finite).sum().to(mean)])
        self._folded = now if self._folded is None else _merged(self._folded.to(now), now)


def _merged(one: Tensor, other: Tensor) -> Tensor:
    """The figures of both together."""
    n, m = one[0], other[0]
    number = n + m
    share = m / number.clamp(min=1)
    apart = other[1] - one[1]
    squares = one[2] + other[2] + apart.square() * n * share
    return torch.stack([number, one[1] + apart * share, squares, one[3] + other[3]])
