"""Norms of units whose elements lie on several processes: local sums, one all-reduce, nothing gathered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lightning_gradguard.measurement.needs import Needs
from lightning_gradguard.measurement.pieces import Piece
from lightning_gradguard.measurement.unit_norms import UnitNorms
from lightning_gradguard.measurement.units import Units, norm_of_norms

SumEach = Callable[[Sequence[tuple[int, Tensor]]], list[Tensor]]


@final
@dataclass(frozen=True, eq=False)
class ShardedUnits(UnitNorms):
    """The units of some parameters, one parameter after the other, the same numbers on every process.

    Attributes:
        norms: of the gradient of each unit.
        weights: of the weights of each unit.
        places: for each of the parameters its index, and the unit of each element of the local piece.
    """

    norms: Tensor
    weights: Tensor
    places: tuple[tuple[int, UnitOfElements], ...]

    def spread(self, factors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Looks up the factor of each local element, or of each row of them."""
        parts = factors.split([place.num_units for _, place in self.places])
        for (index, place), part in zip(self.places, parts, strict=True):
            yield index, part[place.unit_of]

    def left(self, factors: Tensor, norms: Tensor) -> Tensor:
        """Adds the squares of the units of each parameter."""
        left = norms.clone()
        parts = (self.norms * factors).split([place.num_units for _, place in self.places])
        for (index, _), part in zip(self.places, parts, strict=True):
            left[index] = norm_of_norms(part)
        return left

    def scaled(self, coefficient: Tensor) -> ShardedUnits:
        """Multiplies the norms of gradients."""
        if coefficient.dim():
            coefficient = torch.cat([coefficient[i].expand(place.num_units) for i, place in self.places])
        return replace(self, norms=self.norms * coefficient)


@dataclass(frozen=True, eq=False)
class UnitOfElements:
    """Which unit each element of a local piece belongs to.

    Attributes:
        unit_of: the unit, in a shape that broadcasts over the piece.
        num_units: of the whole parameter.
        along_units: whether norms over the dimensions within a unit can be taken first.
    """

    unit_of: Tensor
    num_units: int
    along_units: bool


def units_of_pieces(
    needs: Needs,
    grads: Sequence[Tensor | None],
    values: Sequence[Tensor],
    pieces: Sequence[Piece],
    sum_each: SumEach,
) -> list[UnitNorms]:
    """Measures the units that are needed, of gradients and weights at once, with one all-reduce.

    Args:
        needs: of one policy; the same on every process.
        grads: the local pieces of all gradients.
        values: the local pieces of all parameters.
        pieces: what these are pieces of.
        sum_each: sums vectors of parameters over the processes.
    """
    wanted = [(i, units) for i, units in enumerate(needs.units or ()) if units is not None]
    if not wanted:
        return []
    places = [unit_of_elements(pieces[i], units, values[i]) for i, units in wanted]
    of_each = list(zip(wanted, places, strict=True))
    squares = [(i, _squares(units, place, grads[i], values[i])) for (i, units), place in of_each]
    squares += [(i, _squares(units, place, values[i], values[i])) for (i, units), place in of_each]
    norms = [total.sqrt().float() for total in sum_each(squares)]
    half = len(wanted)
    placed = tuple((i, place) for (i, _), place in of_each)
    return [ShardedUnits(torch.cat(norms[:half]), torch.cat(norms[half:]), placed)]


def unit_of_elements(piece: Piece, units: Units, local: Tensor) -> UnitOfElements:
    """Finds which unit each element of a local piece belongs to."""
    if units.whole:
        return UnitOfElements(torch.zeros((), dtype=torch.int64, device=local.device), 1, along_units=True)
    shape = units.view or piece.shape
    outer = [1 if dim in units.dims else size for dim, size in enumerate(shape)]
    num = math.prod(outer)

    # Rows of a flattened whole: their number follows from the place of an element, without a tensor as large as it.
    if piece.elements is not None and units.view is None and 0 not in units.dims:
        elements = torch.arange(*piece.elements, device=local.device)
        return UnitOfElements(elements // math.prod(piece.shape[1:]), num, along_units=False)

    # Otherwise number the units of the whole, as views, and cut the piece out of them.
    every = torch.arange(num, device=local.device).view(outer).expand(shape).reshape(piece.shape)
    if piece.elements is not None:
        return UnitOfElements(every.reshape(-1)[slice(*piece.elements)], num, along_units=False)
    for dim, (start, size) in enumerate(zip(piece.offset, local.shape, strict=True)):
        every = every.narrow(dim, min(start, piece.shape[dim] - size), size)
    if units.view is not None:
        return UnitOfElements(every, num, along_units=False)

    # All elements along the dimensions within a unit belong to the same one: the first of them stands for all.
    for dim in units.dims:
        every = every[(slice(None),) * dim + (slice(0, 1),)]
    return UnitOfElements(every, num, along_units=True)


def _squares(units: Units, place: UnitOfElements, tensor: Tensor | None, like: Tensor) -> Tensor:
    """Sum of squares of the local elements of each unit of the whole, ``[num_units]``, in float64."""
    total = torch.zeros(place.num_units, dtype=torch.float64, device=like.device)
    if tensor is None or tensor.numel() == 0:
        return total
    if place.along_units:
        own, unit_of = units.norms(tensor), place.unit_of
    else:
        own, unit_of = tensor.abs().flatten(), place.unit_of.expand(tensor.shape)
    return total.index_add_(0, unit_of.flatten(), own.double().square())
