"""Norms and largest elements of many tensors at once, step after step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import is_not
from typing import TypeVar

from torch import Tensor

from lightning_gradguard.measurement.plan import Plan, make_plan
from lightning_gradguard.measurement.units import FoundUnits, Wanted

_Found = TypeVar("_Found")


class Norms:
    """Measures lists of tensors that look alike from one call to the next, such as the gradients of each step.

    Which tensors are stacked, which are cut into pieces and which go through ``torch._foreach_norm`` is planned at the
    first call, and again when tensors come or go or no longer fit. Planning costs about as much as measuring.

    Args:
        wanted: the units that are measured, too, one entry for each of those who want to know some.

    Example:
        >>> import torch
        >>> Norms()([torch.tensor([3.0, 4.0]), None])
        tensor([5., 0.])
    """

    def __init__(self, wanted: Sequence[Wanted] = ()) -> None:
        self.wanted = wanted
        self._plan: Plan | None = None

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Returns the l2 norm of each tensor, ``[len(tensors)]``, on the first tensor's device; 0 for ``None``."""
        return self._by_plan(Plan.norms, tensors)[0]

    def with_units(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor, list[FoundUnits]]:
        """Returns the l2 norm of each tensor, and from the same pass those of the units that each one wants.

        Tensors that are not there, sparse, complex or empty ones have no units here.
        """
        return self._by_plan(Plan.norms, tensors)

    def of_units(self, tensors: Sequence[Tensor | None]) -> FoundUnits:
        """Returns the norms of units alone; on an object with one who wants some, asked for nothing else."""
        return self._by_plan(Plan.norms, tensors, only_units=True)[1][0]

    def largest(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Returns the largest absolute element of each tensor; NaN if one is; 0 for ``None`` and empty ones."""
        return self._by_plan(Plan.largest, tensors)

    def _by_plan(
        self,
        measure: Callable[[Plan, Sequence[Tensor | None]], _Found],
        tensors: Sequence[Tensor | None],
        only_units: bool = False,
    ) -> _Found:
        # The plan is tried, not checked: comparing every shape at each step would cost as much as measuring.
        present = list(map(is_not, tensors, repeat(None)))
        if self._plan is not None and self._plan.present == present:
            try:
                return measure(self._plan, tensors)
            except (RuntimeError, IndexError):  # another shape, dtype, device or layout than was planned for
                pass
        self._plan = make_plan(tensors, present, self.wanted, only_units)
        return measure(self._plan, tensors)
