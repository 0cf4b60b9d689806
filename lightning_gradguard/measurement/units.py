"""Units: parts of a parameter that are measured, and scaled, each by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

# On CPU one full float32 reduction reads low by up to 7e-6 at this size, 1e-4 at 2**17, 1e-2 at 10**8: more numbers
# are measured in pieces, and the norm is taken of the norms of these.
LONG = 2**13
_PIECE = 1024


@dataclass(frozen=True)
class Units:
    """How the elements of a parameter fall into units.

    Attributes:
        dims: dimensions inside a unit, over which its norm is taken; none where the parameter is one unit.
        view: the shape to see the parameter in before, where its own will not do (grouped transposed convolutions).
    """

    dims: tuple[int, ...]
    view: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether the parameter is a single unit."""
        return not self.dims

    @property
    def rows(self) -> bool:
        """Whether each index of the first dimension is a unit."""
        return self.view is None and bool(self.dims) and 0 not in self.dims

    def count(self, shape: Sequence[int]) -> int:
        """How many units a parameter of this shape has."""
        return 1 if self.whole else math.prod(self._outer(shape))

    def norms(self, tensor: Tensor) -> Tensor:
        """l2 norm of each unit of such a parameter, as one vector."""
        dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
        return self.measurer(tensor.shape, dtype)(tensor)

    def measurer(
        self, shape: Sequence[int], dtype: torch.dtype | None, *, stacked: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """What measures the units of one parameter, again and again, as one vector; of a stack of them, one row each.

        Args:
            shape: of one parameter.
            dtype: in which to sum; ``None`` for that of the elements.
            stacked: whether it gets several at once, counted by a first dimension.
        """
        first = int(stacked)
        dims = [dim + first for dim in self.dims] or list(range(first, len(shape) + first))
        norm = functools.partial(torch.linalg.vector_norm, dim=dims, dtype=dtype)
        if self.rows and math.prod(shape[1:]) >= LONG:
            assert not stacked, "long rows are not stacked"
            return lambda tensor: torch.linalg.vector_norm(norms_of_pieces(tensor, shape[0], dtype), dim=1)
        if not dims:
            return lambda tensor: tensor.abs().flatten(first)
        if self.view is not None:
            view = (*[-1] * first, *self.view)
            return lambda tensor: norm(tensor.view(view)).flatten(first)
        return norm if self.rows else lambda tensor: norm(tensor).flatten(first)

    def spread(self, factors: Tensor, shape: torch.Size, num: int) -> Sequence[Tensor]:
        """One factor for each unit of ``num`` parameters of this shape, in vectors that broadcast over each of them."""
        if self.whole:
            return factors.unbind()
        each = factors.view(num, *self._outer(shape))
        if self.view is not None:
            each = each.expand(-1, -1, self.view[1], *[-1] * (each.dim() - 3)).flatten(1, 2)
        return each.unbind()

    def _outer(self, shape: Sequence[int]) -> list[int]:
        return [1 if dim in self.dims else size for dim, size in enumerate(self.view or shape)]


WHOLE = Units(())


@dataclass(frozen=True, eq=False)
class Run:
    """Parameters of one shape on one device, whose units follow each other in a vector of units.

    Attributes:
        indices: which parameters.
        units: of each of them.
        shape: of each of them.
        device: of each of them.
    """

    indices: tuple[int, ...]
    units: Units
    shape: torch.Size
    device: torch.device

    @functools.cached_property
    def num_each(self) -> int:
        """Units of one parameter."""
        return self.units.count(self.shape)


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """Where a vector of units has those of which parameter.

    Attributes:
        runs: the parameters, in the vector's order.
        parts: what :meth:`part` found, for whoever asks at each step.
    """

    runs: tuple[Run, ...]
    parts: WeakKeyDictionary[object, UnitPart | None] = field(default_factory=WeakKeyDictionary)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Units of each run."""
        return [len(run.indices) * run.num_each for run in self.runs]

    def part(self, wanted: Sequence[int], indices: Sequence[int] | None, device: torch.device) -> UnitPart | None:
        """The order of some parameters' units, and their places in this one; ``None`` if some are not here.

        Args:
            wanted: parameters, as positions in ``indices``.
            indices: parameters that are asked about; ``None``: all.
            device: of the places.
        """
        own = {position if indices is None else indices[position]: position for position in wanted}
        runs: list[Run] = []
        places: list[int] = []
        start = 0
        for run in self.runs:
            kept = sorted((own.pop(index), place) for place, index in enumerate(run.indices) if index in own)
            if kept:
                runs.append(replace(run, indices=tuple(position for position, _ in kept)))
            for _, place in kept:
                places.extend(range(start + place * run.num_each, start + (place + 1) * run.num_each))
            start += len(run.indices) * run.num_each
        if own:
            return None
        unchanged = places == list(range(start))
        return UnitOrder(tuple(runs)), None if unchanged else torch.tensor(places, dtype=torch.int64, device=device)


# An order, and the places of its units in that of which it is a part; no places for all of them.
UnitPart = tuple[UnitOrder, Tensor | None]


@dataclass(frozen=True, eq=False)
class UnitNorms:
    """Norms of the units of some parameters.

    Attributes:
        norms: one vector of all.
        order: which is whose.
    """

    norms: Tensor
    order: UnitOrder

    def scaled(self, coefficient: Tensor) -> UnitNorms:
        """After multiplying the parameters by ``coefficient``: ``[]``, or one for each parameter."""
        if coefficient.dim():
            each = [coefficient[i].expand(run.num_each) for run in self.order.runs for i in run.indices]
            coefficient = torch.cat(each) if each else coefficient.new_zeros(0)
        return replace(self, norms=self.norms * coefficient)

    def spread(self, factors: Tensor, num_params: int) -> list[Tensor | None]:
        """For each of the parameters its part of one factor for each unit, which broadcasts over it, or ``None``."""
        spread: list[Tensor | None] = [None] * num_params
        parts = factors.split(self.order.sizes)
        for run, part in zip(self.order.runs, parts, strict=True):
            local = part.to(run.device, non_blocking=True)
            for index, factor in zip(run.indices, run.units.spread(local, run.shape, len(run.indices)), strict=True):
                spread[index] = factor
        return spread


def norms_of_pieces(tensor: Tensor, num: int, dtype: torch.dtype | None) -> Tensor:
    """Norms of the pieces of each of ``num`` long rows, ``[num, pieces]``: few enough for one reduction.

    Args:
        tensor: any shape; its elements fall into ``num`` rows, one after the other.
        num: of rows.
        dtype: in which to sum; ``None`` for the tensor's.
    """
    length = tensor.numel() // num
    if width := _width(length):
        pieces = torch.linalg.vector_norm(tensor.reshape(num, -1, width), dim=2, dtype=dtype)
    else:
        rows, rest = tensor.reshape(num, length), length % _PIECE
        pieces = torch.linalg.vector_norm(rows[:, :-rest].reshape(num, -1, _PIECE), dim=2, dtype=dtype)
        end = torch.linalg.vector_norm(rows[:, -rest:], dim=1, keepdim=True, dtype=dtype)
        pieces = torch.cat([pieces, end], dim=1)
    return pieces if pieces.shape[1] < LONG else norms_of_pieces(pieces, num, dtype)


@functools.cache
def _width(length: int) -> int:
    """A length of pieces that divides the row; 0 if there is none near."""
    return next((width for width in range(_PIECE, _PIECE // 4, -1) if length % width == 0), 0)
