"""Norms of units as a policy gets them: of gradients and of weights, and a factor for each handed back."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lightning_gradguard.measurement.needs import Needs
from lightning_gradguard.measurement.units import FoundUnits, UnitOrder, Units, norm_of_norms


class UnitNorms(ABC):
    """Norms of the units of some parameters, one number each, in one vector.

    Attributes:
        norms: l2 norm of the gradient of each unit, ``[num_units]``.
        weights: l2 norm of the weights of each unit, in the same order; reading them is a pass over the weights.
    """

    norms: Tensor
    weights: Tensor

    @abstractmethod
    def spread(self, factors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Hands out one factor for each unit: for each parameter its index, and what broadcasts over its gradient."""

    @abstractmethod
    def left(self, factors: Tensor, norms: Tensor) -> Tensor:
        """Tells what is left of gradients whose units are multiplied: ``norms``, with those of its parameters anew."""

    @abstractmethod
    def scaled(self, coefficient: Tensor) -> UnitNorms:
        """Returns what is left of them when gradients are multiplied: ``[]``, or one number for each parameter."""


@final
@dataclass(frozen=True, eq=False)
class PlainUnits(UnitNorms):
    """Units of dense real gradients, all measured together.

    Attributes:
        norms: of the gradient of each unit.
        order: which of them is whose.
        needs: of the policy.
        params: its parameters.
    """

    norms: Tensor
    order: UnitOrder
    needs: Needs
    params: Sequence[Tensor]

    @functools.cached_property
    def weights(self) -> Tensor:  # type: ignore[override]
        """Reads the weights whose gradients have units here."""
        with torch.no_grad():
            return self.needs.units_of_weights.of_units(self.order.pick(self.params)).norms

    def spread(self, factors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Cuts the vector up."""
        return self.order.spread(factors)

    def left(self, factors: Tensor, norms: Tensor) -> Tensor:
        """Adds the squares of the units of each parameter."""
        return self.order.put_together(self.norms, factors, norms)

    def scaled(self, coefficient: Tensor) -> PlainUnits:
        """Multiplies the norms."""
        # Clipping by tensor gives one number for each: its units share it.
        each = self.order.one_each(coefficient) if coefficient.dim() else coefficient
        return replace(self, norms=self.norms * each)


@final
@dataclass(frozen=True, eq=False)
class OddUnits(UnitNorms):
    """Units of one sparse or complex gradient; of a sparse one those rows of the table that occurred.

    Attributes:
        norms: of the gradient of each unit.
        index: which parameter.
        units: how it falls into them.
        values: its weights, as far as they have a gradient.
    """

    norms: Tensor
    index: int
    units: Units
    values: Tensor

    @staticmethod
    def of(index: int, units: Units, grad: Tensor, weight: Tensor) -> OddUnits:
        """Measures one gradient."""
        # Rows that did not occur have no gradient, so neither they nor their weights are read.
        if grad.layout != torch.strided:
            grad = grad.coalesce()
            weight, grad = weight[grad.indices()[0]], grad.values()
        return OddUnits(units.norms(grad), index, units, weight)

    @functools.cached_property
    def weights(self) -> Tensor:  # type: ignore[override]
        """Reads the weights."""
        with torch.no_grad():
            return self.units.norms(self.values)

    def spread(self, factors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Shapes the vector like the gradient, or like its values."""
        yield self.index, self.units.spread(factors, self.values.shape, 1)[0]

    def left(self, factors: Tensor, norms: Tensor) -> Tensor:
        """Adds the squares of its units."""
        left = norms.clone()
        left[self.index] = norm_of_norms(self.norms * factors)
        return left

    def scaled(self, coefficient: Tensor) -> OddUnits:
        """Multiplies the norms."""
        own = coefficient[self.index] if coefficient.dim() else coefficient
        return replace(self, norms=self.norms * own.to(self.norms.device))


def units_of_whole_tensors(
    needs: Needs, grads: Sequence[Tensor | None], params: Sequence[Tensor], found: FoundUnits
) -> list[UnitNorms]:
    """Puts together what one pass found, and measures sparse and complex gradients one by one.

    Args:
        needs: of one policy.
        grads: the gradients of its parameters.
        params: its parameters.
        found: the norms of its units among dense real gradients.
    """
    plain: list[UnitNorms] = [PlainUnits(found.norms, found.order, needs, params)] if found.order.blocks else []
    odd: list[UnitNorms] = [
        OddUnits.of(index, units, grad, params[index])
        for index in found.order.odd
        if (units := (needs.units or ())[index]) and (grad := grads[index]) is not None and grad.numel()
    ]
    return plain + odd
