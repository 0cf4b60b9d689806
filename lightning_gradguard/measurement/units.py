"""Units: parts of a parameter that are measured, and scaled, each by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# On CPU one full float32 reduction reads low by up to 7e-6 at this size, 1e-4 at 2**17, 1e-2 at 10**8: more numbers
# are measured in pieces, and the norm is taken of the norms of these.
LONG = 2**13
_PIECE = 1024
_SHORTEST = 64  # of pieces: shorter ones take more time than the view they spare


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
        """Tells whether the parameter is a single unit."""
        return not self.dims

    @property
    def rows(self) -> bool:
        """Tells whether each index of the first dimension is a unit."""
        return self.view is None and bool(self.dims) and 0 not in self.dims

    def count(self, shape: Sequence[int]) -> int:
        """Tells how many units a parameter of this shape has."""
        return 1 if self.whole else math.prod(self._outer(shape))

    def norms(self, tensor: Tensor) -> Tensor:
        """l2 norm of each unit of such a parameter, as one vector."""
        dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
        return self.measurer(tensor.shape, dtype)(tensor)

    def measurer(
        self, shape: Sequence[int], dtype: torch.dtype | None, *, stacked: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """Returns what measures the units of one parameter as one vector; of a stack of parameters, one row each.

        Args:
            shape: of one parameter.
            dtype: in which to sum; ``None`` for that of the elements.
            stacked: whether it gets several at once, counted by a first dimension.
        """
        # A stack has one dimension more, the first: all dimensions of a unit move by one.
        first = int(stacked)
        dims = [dim + first for dim in self.dims] or list(range(first, len(shape) + first))
        norm = functools.partial(torch.linalg.vector_norm, dim=dims, dtype=dtype)
        if self.rows and math.prod(shape[1:]) >= LONG:
            assert not stacked, "long rows are not stacked"
            return lambda tensor: torch.linalg.vector_norm(norms_of_pieces(tensor, shape[0], dtype), dim=1)
        # A number is its own norm: reducing over no dimension would reduce over all of them.
        if not dims:
            return lambda tensor: tensor.abs().flatten(first)
        if self.view is not None:
            view = (*[-1] * first, *self.view)
            return lambda tensor: norm(tensor.view(view)).flatten(first)
        return norm if self.rows else lambda tensor: norm(tensor).flatten(first)

    def spread(self, factors: Tensor, shape: torch.Size, num: int) -> Sequence[Tensor]:
        """Shapes one factor for each unit of ``num`` parameters of this shape to broadcast over each of these."""
        if self.whole:
            return factors.unbind()
        each = factors.view(num, *self._outer(shape))
        # Units were seen in another shape than the gradient has: the factors go back to that of the gradient.
        if self.view is not None:
            each = each.expand(-1, -1, self.view[1], *[-1] * (each.dim() - 3)).flatten(1, 2)
        return each.unbind()

    def _outer(self, shape: Sequence[int]) -> list[int]:
        return [1 if dim in self.dims else size for dim, size in enumerate(self.view or shape)]


WHOLE = Units(())


@dataclass(frozen=True)
class Wanted:
    """Which units of a list of tensors somebody wants to know.

    Attributes:
        units: of each tensor that is asked about; ``None`` for none of its units.
        indices: the places of these tensors in the list; ``None`` where they are the list.
    """

    units: tuple[Units | None, ...]
    indices: tuple[int, ...] | None = None

    def places(self) -> Iterator[tuple[int, int, Units]]:
        """Yields for each tensor with units its number among those asked about, its place in the list, its units."""
        for number, units in enumerate(self.units):
            if units is not None:
                yield number, number if self.indices is None else self.indices[number], units


@dataclass(frozen=True, eq=False)
class Block:
    """Tensors of one shape on one device, whose units follow each other in a vector of units.

    Attributes:
        indices: which tensors, in the order of whoever wants them.
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
        """Units of one tensor."""
        return self.units.count(self.shape)


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """Which part of a vector of units belongs to which tensor.

    Attributes:
        blocks: the tensors, in the vector's order.
        odd: tensors that somebody wants units of and that have none here: sparse, complex and empty ones.
    """

    blocks: tuple[Block, ...]
    odd: tuple[int, ...] = ()

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Units of each block."""
        return [len(block.indices) * block.num_each for block in self.blocks]

    def pick(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns those of the tensors that have units here, ``None`` in place of the others."""
        # A layout asks for the same parameters at each step: they are picked once.
        known = self.__dict__.get("_picked")
        if known is None or known[0] is not tensors:
            indices = {index for block in self.blocks for index in block.indices}
            found = [tensor if index in indices else None for index, tensor in enumerate(tensors)]
            known = self.__dict__["_picked"] = tensors, found
        return known[1]

    def one_each(self, values: Tensor) -> Tensor:
        """Repeats one number for each tensor for each of its units."""
        # An expanded view costs no memory until all are put together, in the order of the units.
        each = [values[index].expand(block.num_each) for block in self.blocks for index in block.indices]
        return torch.cat(each) if each else values.new_zeros(0)

    def put_together(self, norms: Tensor, factors: Tensor, whole: Tensor) -> Tensor:
        """Puts norms of units together: returns norms of tensors, with those of the tensors that have units anew.

        Args:
            norms: of the units.
            factors: what each of them was multiplied by since.
            whole: of the tensors.
        """
        # One sum for all, in double precision: the squares of tiny norms vanish in single precision.
        owners, has_units = self._owners(norms.device, len(whole))
        left = norms * factors
        wide = left.float() if norms.device.type == "mps" else left.double()
        squares = wide.new_zeros(len(whole)).index_add_(0, owners, wide.square_())
        return torch.where(has_units, squares.sqrt_().to(whole), whole)

    def _owners(self, device: torch.device, num: int) -> tuple[Tensor, Tensor]:
        """Returns for each unit its tensor, and for each of so many tensors whether it has units; made once."""
        cache: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = self.__dict__.setdefault("_owners_on", {})
        if (device, num) not in cache:
            each = [index for block in self.blocks for index in block.indices for _ in range(block.num_each)]
            owners = torch.tensor(each, dtype=torch.int64, device=device)
            has_units = torch.zeros(num, dtype=torch.bool, device=device)
            cache[device, num] = owners, has_units.index_fill_(0, owners, True)
        return cache[device, num]

    def spread(self, factors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Cuts a vector of factors up: for each tensor its index, and its part in a shape that broadcasts over it."""
        for block, part in zip(self.blocks, factors.split(self.sizes), strict=True):
            local = part.to(block.device, non_blocking=True)
            yield from zip(block.indices, block.units.spread(local, block.shape, len(block.indices)), strict=True)


class FoundUnits(NamedTuple):
    """Norms of units.

    Attributes:
        norms: one vector of all.
        order: which is whose.
    """

    norms: Tensor
    order: UnitOrder


def norm_of_norms(norms: Tensor) -> Tensor:
    """Returns the norm of what has these norms, along the last dimension; in float64 where the device has it."""
    dtype = torch.float32 if norms.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(norms, dim=-1, dtype=dtype)


def norms_of_pieces(tensor: Tensor, num: int, dtype: torch.dtype | None) -> Tensor:
    """Norms of the pieces of each of ``num`` long rows, ``[num, pieces]``: few enough for one reduction.

    Args:
        tensor: any shape; its elements fall into ``num`` rows, one after the other.
        num: of rows.
        dtype: in which to sum; ``None`` for the tensor's.
    """
    # One reduction over a long row rounds too much and runs on one core: pieces are summed first, then their norms.
    length = tensor.numel() // num
    if width := _width(length):
        pieces = torch.linalg.vector_norm(tensor.reshape(num, -1, width), dim=2, dtype=dtype)
    else:
        rows, rest = tensor.reshape(num, length), length % _PIECE
        pieces = torch.linalg.vector_norm(rows[:, :-rest].reshape(num, -1, _PIECE), dim=2, dtype=dtype)
        end = torch.linalg.vector_norm(rows[:, -rest:], dim=1, keepdim=True, dtype=dtype)
        pieces = torch.cat([pieces, end], dim=1)
    return pieces if pieces.shape[1] < LONG else norms_of_pieces(pieces, num, dtype)


def measurer_of_pieces(tensor: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Returns what gives the norms of pieces of one long tensor, fewer than :data:`LONG`: by one operator, if it can.

    Args:
        tensor: that is to be measured, or one like it.
        dtype: in which to sum.
    """
    num, length = len(tensor), tensor.numel() // len(tensor)
    if tensor.dim() > 1 and _SHORTEST <= length <= LONG // 2 and num < LONG and rows_lie_apart(tensor):
        # Its own rows are of a good length: a view costs as much as a reduction of some thousand elements.
        return functools.partial(torch.linalg.vector_norm, dim=tuple(range(1, tensor.dim())), dtype=dtype)
    width = _width(tensor.numel())
    if width and tensor.numel() // width < LONG and tensor.is_contiguous():
        return lambda long: torch.linalg.vector_norm(long.view(-1, width), dim=1, dtype=dtype)
    return lambda long: norms_of_pieces(long, 1, dtype)


def rows_lie_apart(tensor: Tensor) -> bool:
    """Tells whether each row is in one place in memory: sums over such are exact enough to make a norm of."""
    return tensor.stride(0) * tensor.shape[0] >= tensor.numel()


@functools.cache
def _width(length: int) -> int:
    """Returns a length of pieces that divides the row; 0 if there is none near."""
    return next((width for width in range(_PIECE, _PIECE // 4, -1) if length % width == 0), 0)
