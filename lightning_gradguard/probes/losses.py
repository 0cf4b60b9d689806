"""The losses of the steps since the last record: mean, spread, and how many were not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FOLD_EVERY = 64  # losses that are kept until they are folded together


class Losses:
    """Keeps losses on the device until a record asks; a quiet step costs the copy of one number.

    Attributes:
        new: of the steps since the last :meth:`fold`, which is due at :data:`FOLD_EVERY` of them.

    Example:
        >>> losses = Losses()
        >>> for value in (1.0, 3.0, float("nan")):
        ...     losses.new.append(torch.tensor(value))
        >>> losses.take()
        (2.0, 1.0, 1)
    """

    def __init__(self) -> None:
        self.new: list[Tensor | float] = []
        self._folded: Tensor | None = None  # number, mean, sum of squares around it, number of not finite ones

    def take(self) -> tuple[float | None, float | None, int]:
        """Mean and standard deviation of the finite ones since the last call, and how many were not finite."""
        self.fold()
        if self._folded is None:
            return None, None, 0
        number, mean, squares, bad = self._folded.tolist()  # host sync: a logged step
        self._folded = None
        if number == 0:
            return math.nan, None, int(bad)
        return mean, math.sqrt(squares / number) if number > 1 else None, int(bad)

    def state(self) -> list[float]:
        """What was folded so far, as numbers."""
        self.fold()
        return [] if self._folded is None else self._folded.tolist()  # host sync: a checkpoint is written

    def load_state(self, state: Sequence[float]) -> None:
        """Goes on from :meth:`state`."""
        self.new, self._folded = [], torch.tensor(state, dtype=torch.float64, device="cpu") if state else None

    @torch.no_grad()
    def fold(self) -> None:
        """Brings the figures up to the last loss."""
        if not self.new:
            return
        values = as_vector(self.new)
        self.new = []
        finite = values.isfinite()
        number = finite.sum()
        mean = values.where(finite, 0.0).sum() / number.clamp(min=1)
        squares = (values - mean).where(finite, 0.0).square().sum()
        now = torch.stack([number.to(mean), mean, squares, (~finite).sum().to(mean)])
        self._folded = now if self._folded is None else _merged(self._folded.to(now), now)


def as_vector(losses: Sequence[Tensor | float]) -> Tensor:
    """Returns losses as one vector, in double precision where the device has it; numbers lie on the CPU by themselves.

    Example:
        >>> as_vector([1.0, torch.tensor(2.0)])
        tensor([1., 2.], dtype=torch.float64)
    """
    if not any(isinstance(loss, Tensor) for loss in losses):
        return torch.tensor(losses, dtype=torch.float64, device="cpu")
    device = next((loss.device for loss in losses if isinstance(loss, Tensor)), torch.device("cpu"))
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([torch.as_tensor(loss, dtype=wide, device=device) for loss in losses])


def _merged(one: Tensor, other: Tensor) -> Tensor:
    """The figures of both together."""
    n, m = one[0], other[0]
    number = n + m
    share = m / number.clamp(min=1)
    apart = other[1] - one[1]
    squares = one[2] + other[2] + apart.square() * n * share
    return torch.stack([number, one[1] + apart * share, squares, one[3] + other[3]])
