"""The total norm of every step since the last record, on the device: four bytes a step, and no more than 16 KiB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Steps that have a place of their own. The usual interval between two records is 50 steps, a long one a thousand.
CAPACITY = 4096


class StepNorms:
    """Keeps the total norm of each step, as it was: of a step that was dropped too, NaN and infinity included.

    One vector of :data:`CAPACITY` numbers, made once. When it is full, neighbours become one, the larger of the two
    (of two that are not finite NaN), and from then on each place takes two steps, then four: the curve loses places,
    and no peak.

    Args:
        device: where the norms are.

    Attributes:
        steps_per_norm: how many steps share a place: 1, 2, 4, ...

    Example:
        >>> norms = StepNorms(torch.device("cpu"))
        >>> norms.extend(torch.tensor([1.0, 2.0, float("nan")]))
        >>> norms.values()
        tensor([1., 2., nan])
    """

    def __init__(self, device: torch.device) -> None:
        self._norms = torch.empty(CAPACITY, dtype=torch.float32, device=device)
        self.reset()

    def reset(self) -> None:
        """Starts anew, after a record."""
        self.num_steps = 0
        self.steps_per_norm = 1

    def extend(self, totals: Tensor) -> None:
        """Takes in the norms of some steps, oldest first.

        Args:
            totals: shape ``[n]``.
        """
        room = CAPACITY * self.steps_per_norm - self.num_steps
        if totals.numel() > room:  # what fits is written, then the full vector is halved
            self._write(totals[:room])
            self._halve()
            self.extend(totals[room:])
            return
        self._write(totals)

    def _write(self, totals: Tensor) -> None:
        first, self.num_steps = self.num_steps, self.num_steps + totals.numel()
        if self.steps_per_norm == 1:
            self._norms[first : self.num_steps] = totals
            return
        # A step that shares its place is taken into the largest there.
        places = torch.arange(first, self.num_steps, device=totals.device) // self.steps_per_norm
        self._norms.scatter_reduce_(0, places, _largest_first(totals.to(self._norms)), "amax")

    def _halve(self) -> None:
        pairs = _largest_first(self._norms).view(-1, 2).amax(1)
        self._norms[: CAPACITY // 2] = pairs
        self._norms[CAPACITY // 2 :] = -math.inf
        self.steps_per_norm *= 2

    def values(self) -> Tensor:
        """Returns the norms so far, float32 ``[places]``; minus infinity where no step of a shared place was finite."""
        return self._norms[: -(-self.num_steps // self.steps_per_norm)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the norms so far, for a checkpoint."""
        return {
            "norms": self.values().clone(),
            "num_steps": self.num_steps,
            "steps_per_norm": self.steps_per_norm,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.num_steps, self.steps_per_norm = int(state["num_steps"]), int(state["steps_per_norm"])
        self._norms.fill_(-math.inf)
        self.values().copy_(state["norms"])


def _largest_first(norms: Tensor) -> Tensor:
    """Returns the norms with what is not finite below every number, so that a maximum never takes it."""
    return norms.where(norms.isfinite(), -math.inf)


def told(norms: Sequence[float]) -> tuple[float, ...]:
    """Returns norms on the host as a record tells them: NaN for a place where no step was finite.

    Example:
        >>> told([1.0, -math.inf])
        (1.0, nan)
    """
    return tuple(math.nan if norm == -math.inf else norm for norm in norms)
