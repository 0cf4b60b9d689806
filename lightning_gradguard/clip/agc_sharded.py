"""Norms of units whose elements lie on several processes: local sums, one all-reduce, nothing gathered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.sharding import Piece
from lightning_gradguard.measurement.units import Units


@dataclass(frozen=True, eq=False)
class UnitNorms:
    """Norms of all units of one parameter, and which of them this process's elements belong to.

    Attributes:
        index: which parameter.
        grads: norm of each unit's gradient, flat.
        weights: norm of each unit's weights, flat.
        unit_of: the unit of each element of the local piece, in a shape that broadcasts over it.
    """

    index: int
    grads: Tensor
    weights: Tensor
    unit_of: Tensor


def measure_sharded_units(
    layout: Layout, units: Sequence[Units], wanted: Sequence[int], grads: Sequence[Tensor | None]
) -> list[UnitNorms]:
    """Measures the units of some parameters, of gradients and weights at once.

    Args:
        layout: all parameters; sharded.
        units: of each of them.
        wanted: which parameters to measure, by index; the same on every process.
        grads: the local pieces of all gradients.
    """
    assert layout.sharding is not None
    values = layout.values()
    places = [unit_of_elements(layout.sharding.pieces[i], units[i], values[i]) for i in wanted]
    sums = [(i, _squares(units[i], place, grads[i], values[i])) for i, place in zip(wanted, places, strict=True)]
    sums += [(i, _squares(units[i], place, values[i], values[i])) for i, place in zip(wanted, places, strict=True)]
    norms = [total.sqrt().float() for total in layout.sharding.sum_each(sums)]
    half = len(wanted)
    return [
        UnitNorms(i, grad, weight, place.unit_of)
        for i, place, grad, weight in zip(wanted, places, norms[:half], norms[half:], strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Place:
    unit_of: Tensor
    num_units: int
    along_units: bool  # whether norms over the dimensions within a unit can be taken first


def unit_of_elements(piece: Piece, units: Units, local: Tensor) -> _Place:
    """Which unit each element of a local piece belongs to."""
    if units.whole:
        return _Place(torch.zeros((), dtype=torch.int64, device=local.device), 1, along_units=True)
    shape = units.view or piece.shape
    outer = [1 if dim in units.dims else size for dim, size in enumerate(shape)]
    num = math.prod(outer)
    if piece.elements is not None and units.view is None and 0 not in units.dims:  # rows of a flattened whole
        elements = torch.arange(*piece.elements, device=local.device)
        return _Place(elements // math.prod(piece.shape[1:]), num, along_units=False)
    every = torch.arange(num, device=local.device).view(outer).expand(shape).reshape(piece.shape)
    if piece.elements is not None:
        return _Place(every.reshape(-1)[slice(*piece.elements)], num, along_units=False)
    for dim, (start, size) in enumerate(zip(piece.offset, local.shape, strict=True)):
        every = every.narrow(dim, min(start, piece.shape[dim] - size), size)
    if units.view is not None:
        return _Place(every, num, along_units=False)
    for dim in units.dims:
        every = every[(slice(None),) * dim + (slice(0, 1),)]
    return _Place(every, num, along_units=True)


def _squares(units: Units, place: _Place, tensor: Tensor | None, like: Tensor) -> Tensor:
    """Sum of squares of the local elements of each unit of the whole, ``[num_units]``, in float64."""
    total = torch.zeros(place.num_units, dtype=torch.float64, device=like.device)
    if tensor is None or tensor.numel() == 0:
        return total
    if place.along_units:
        own, unit_of = units.norms(tensor), place.unit_of
    else:
        own, unit_of = tensor.abs().flatten(), place.unit_of.expand(tensor.shape)
    return total.index_add_(0, unit_of.flatten(), own.double().square())
