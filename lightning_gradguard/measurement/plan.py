"""How a list of tensors is best measured: which are stacked, cut into pieces or listed, and where each result lies."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradguard.measurement.tensors import accumulator, dense_values, is_plain
from lightning_gradguard.measurement.units import (
    LONG,
    Block,
    FoundUnits,
    UnitOrder,
    Units,
    Wanted,
    measurer_of_pieces,
    norms_of_pieces,
    rows_lie_apart,
)

# Same-shape tensors up to this size are stacked and measured by one call: dispatch costs more than the copy.
_STACK_NUMEL = 4096
_STACK_COUNT = 8

# The kinds of units of one tensor that somebody wants; several where policies see it differently.
_Kinds = tuple[Units, ...]


@dataclass(frozen=True)
class _Measurer:
    """What measures one kind of units of one tensor, or of a stack of tensors.

    Attributes:
        indices: which tensors.
        kind: how they fall into units.
        norms: gives the norms of the units.
        makes_norm: whether the tensor's own norm is taken from these, which saves reading it once more.
    """

    indices: tuple[int, ...]
    kind: Units
    norms: Callable[[Tensor], Tensor]
    makes_norm: bool


@dataclass(frozen=True)
class _Group:
    """Tensors of one device that are measured by one call.

    Attributes:
        indices: which of the list.
        dtype: in which they are summed.
        large: those to cut into pieces first, as positions in ``indices``, each with what gives the norms of these.
        units: what measures their units.
    """

    indices: tuple[int, ...]
    dtype: torch.dtype
    large: tuple[tuple[int, Callable[[Tensor], Tensor]], ...] = ()
    units: tuple[_Measurer, ...] = ()

    def of(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        return list(map(tensors.__getitem__, self.indices))  # type: ignore[arg-type]

    @functools.cached_property
    def position(self) -> dict[int, int]:
        return {index: position for position, index in enumerate(self.indices)}

    def measure_stack(self, tensors: Sequence[Tensor | None], only_units: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the norms of tensors of one shape, and of their units, from one copy of them all."""
        # One copy serves both: a read of the stack for the units, and none for the tensors where units make them up.
        stack = torch.stack(self.of(tensors))
        rows, units = None, []
        for measurer in self.units:
            each = measurer.norms(stack)
            units.append(each.flatten())
            rows = each if measurer.makes_norm else rows
        if only_units and units:
            return [], units
        rows = stack if rows is None else rows
        rows = rows.unsqueeze(1) if rows.dim() == 1 else rows
        return [torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())), dtype=self.dtype)], units

    def measure_list(self, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the norms of tensors by one ``torch._foreach_norm``, and of their units one by one."""
        # Long tensors are replaced by the norms of their pieces: the norm of these is the tensor's.
        found, units = self.of(tensors), []
        for position, norms_of in self.large:
            found[position] = norms_of(found[position])
        for measurer in self.units:
            (index,) = measurer.indices
            each = measurer.norms(tensors[index])  # type: ignore[arg-type]
            units.append(each)
            if measurer.makes_norm:  # the list holds the norms of its rows in its place
                short = each.numel() < LONG
                found[self.position[index]] = each if short else norms_of_pieces(each, 1, self.dtype)
        return ([torch.stack(torch._foreach_norm(found, 2.0, self.dtype))] if found else []), units


@dataclass(frozen=True)
class Plan:
    """How each tensor of a list is measured.

    All results go into one vector: those of the odd tensors, of the stacks, of the lists, one zero for the tensors that
    are not there, and the units last. One lookup then brings the norms into the order of the list, and one for each who
    wants units brings these into theirs.

    Attributes:
        present: for each tensor whether it is there.
        odd: indices of sparse, complex and empty tensors, measured one by one.
        stacks: small ones of one shape.
        lists: all others.
        order: for each tensor its place among the results.
        zero: what is put in for tensors that are not there, of the result's device and dtype.
        units: for each who wants units their order, and their places among the results.
        num_results: how many results there are, with the zero.
        only_units: whether norms of tensors that have units are left out, and :attr:`order` means nothing.
        at_home: whether all results are of the device and dtype of the zero.
        in_order: whether one call gives the norms of all tensors, in the order of the list, and nothing else is wanted.
    """

    present: list[bool]
    odd: tuple[int, ...]
    stacks: tuple[_Group, ...]
    lists: tuple[_Group, ...]
    order: Tensor
    zero: Tensor
    units: tuple[tuple[UnitOrder, Tensor], ...]
    num_results: int
    only_units: bool
    at_home: bool
    in_order: bool

    def norms(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor, list[FoundUnits]]:
        """Returns the norm of each tensor, and for each who wants units the norms of these."""
        pieces, units = list(map(_norm_of_odd, map(tensors.__getitem__, self.odd))), []  # type: ignore[arg-type]
        for group in self.stacks:
            norms, own = group.measure_stack(tensors, self.only_units)
            pieces += norms
            units += own
        for group in self.lists:
            norms, own = group.measure_list(tensors)
            pieces += norms
            units += own
        if self.in_order:
            return pieces[0], []
        # One vector and one lookup for each result: many small copies would cost more than the norms themselves.
        everything = self._together([*pieces, self.zero, *units])
        if everything.numel() != self.num_results:
            raise RuntimeError("there are more or fewer units than were planned for")
        found = [FoundUnits(everything.index_select(0, places), order) for order, places in self.units]
        return everything if self.only_units else everything.index_select(0, self.order), found

    def largest(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Returns the largest absolute element of each tensor."""
        # aminmax reads at memory speed; abs().amax() and the infinity norm do not.
        pieces = [_largest_of_odd(tensors[index]) for index in self.odd]  # type: ignore[arg-type]
        for group in self.stacks:
            low, high = torch.aminmax(_as_rows(torch.stack(group.of(tensors))), dim=1)
            pieces.append(torch.maximum(-low, high))
        for group in self.lists:
            lows, highs = zip(*map(torch.aminmax, group.of(tensors)), strict=True)
            pieces.append(torch.maximum(-torch.stack(lows), torch.stack(highs)))
        return self._together([*pieces, self.zero]).index_select(0, self.order)

    def _together(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces if self.at_home else [piece.to(self.zero, non_blocking=True) for piece in pieces])


def make_plan(
    tensors: Sequence[Tensor | None], present: list[bool], wanted: Sequence[Wanted], only_units: bool
) -> Plan:
    """Plans how to measure tensors that look like these.

    Args:
        tensors: the list.
        present: which of them are there.
        wanted: the units that are wanted besides.
        only_units: whether nothing but units is wanted.
    """
    there = {index: tensor for index, tensor in enumerate(tensors) if tensor is not None}
    kinds = _kinds_of(there, wanted)

    # Small tensors of one shape and the same units are stacked if there are some of them; all others are listed.
    odd: list[int] = []
    alike: dict[tuple[torch.device, torch.dtype, torch.Size, _Kinds], list[int]] = defaultdict(list)
    others: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in there.items():
        if not is_plain(tensor):
            odd.append(index)
        elif tensor.numel() <= _STACK_NUMEL:
            alike[tensor.device, tensor.dtype, tensor.shape, kinds[index]].append(index)
        else:
            others[tensor.device, tensor.dtype].append(index)
    stacks = []
    for (device, dtype, shape, own), indices in alike.items():
        if len(indices) < _STACK_COUNT:
            others[device, dtype].extend(indices)
        else:
            stacks.append(_stack_group(indices, shape, own, accumulator(dtype)))
    lists = [
        _list_group({i: there[i] for i in sorted(indices)}, kinds, accumulator(dtype), only_units)
        for (_, dtype), indices in others.items()
    ]
    return _in_order(there, present, odd, stacks, lists, wanted, only_units)


def _kinds_of(there: Mapping[int, Tensor], wanted: Sequence[Wanted]) -> dict[int, _Kinds]:
    """Returns for each tensor the kinds of its units that somebody wants, each kind once."""
    kinds: dict[int, dict[Units, None]] = {index: {} for index in there}
    for each in wanted:
        for _, index, units in each.places():
            if is_plain(there.get(index)):
                kinds[index][units] = None
    return {index: tuple(own) for index, own in kinds.items()}


def _stack_group(indices: Sequence[int], shape: torch.Size, kinds: _Kinds, dtype: torch.dtype) -> _Group:
    units = tuple(
        _Measurer(tuple(indices), kind, kind.measurer(shape, dtype, stacked=True), makes_norm=kind.rows)
        for kind in kinds
        if not kind.whole
    )
    return _Group(tuple(indices), dtype, units=units)


def _list_group(
    tensors: Mapping[int, Tensor], kinds: Mapping[int, _Kinds], dtype: torch.dtype, only_units: bool
) -> _Group:
    """Tensors that are measured by one ``torch._foreach_norm``, their units one by one."""
    # A tensor that is one unit needs nothing besides its norm; only others are split.
    split = {i: own for i in tensors if (own := [kind for kind in kinds[i] if not kind.whole])}
    indices = [i for i in tensors if not (only_units and i in split)]
    by_rows = {i for i in indices if any(kind.rows for kind in split.get(i, ())) and rows_lie_apart(tensors[i])}
    by_pieces = {i for i in indices if i not in by_rows and _is_large(tensors[i])}
    large = [(position, measurer_of_pieces(tensors[i], dtype)) for position, i in enumerate(indices) if i in by_pieces]
    units = tuple(
        _Measurer((i,), kind, kind.measurer(tensors[i].shape, dtype), makes_norm=i in by_rows and kind.rows)
        for i, own in split.items()
        for kind in own
    )
    return _Group(tuple(indices), dtype, tuple(large), units)


def _in_order(
    there: Mapping[int, Tensor],
    present: list[bool],
    odd: list[int],
    stacks: list[_Group],
    lists: list[_Group],
    wanted: Sequence[Wanted],
    only_units: bool,
) -> Plan:
    """Finds the place of each result."""
    listed = [i for group in stacks if not (only_units and group.units) for i in group.indices]
    found = [*odd, *listed, *(i for group in lists for i in group.indices)]
    place = {index: position for position, index in enumerate(found)}
    starts, num_results = _starts_of_units(there, [*stacks, *lists], len(found) + 1)
    home = next((tensor.device for tensor in there.values()), torch.device("cpu"))
    wide = torch.float64 in [accumulator(tensor.dtype) for tensor in there.values()]
    zero = torch.zeros(1, dtype=torch.float64 if wide else torch.float32, device=home)
    at_home = all((each.device, accumulator(each.dtype)) == (zero.device, zero.dtype) for each in there.values())
    units = []
    for each in wanted:
        order = _order_of(there, each)
        places = _places_of(order, each, starts, place)
        units.append((order, torch.tensor(places, dtype=torch.int64, device=home)))
    return Plan(
        present=present,
        odd=tuple(odd),
        stacks=tuple(stacks),
        lists=tuple(lists),
        order=torch.tensor([place.get(i, len(found)) for i in range(len(present))], dtype=torch.int64, device=home),
        zero=zero,
        units=tuple(units),
        num_results=num_results,
        only_units=only_units,
        at_home=at_home,
        in_order=at_home and not (wanted or odd) and len(stacks + lists) == 1 and found == [*range(len(present))],
    )


def _places_of(
    order: UnitOrder, wanted: Wanted, starts: Mapping[tuple[int, Units], int], place: Mapping[int, int]
) -> list[int]:
    """Returns where the units that somebody wants lie among the results; a tensor that is one unit is its own norm."""
    numbers = {number: index for number, index, _ in wanted.places()}
    return [
        starts.get((numbers[i], block.units), place.get(numbers[i], 0)) + unit
        for block in order.blocks
        for i in block.indices
        for unit in range(block.num_each)
    ]


def _starts_of_units(
    there: Mapping[int, Tensor], groups: Sequence[_Group], start: int
) -> tuple[dict[tuple[int, Units], int], int]:
    """Returns where the units of each kind of each tensor begin among the results, and where the last ones end."""
    starts = {}
    for measurer in (measurer for group in groups for measurer in group.units):
        for index in measurer.indices:
            starts[index, measurer.kind] = start
            start += measurer.kind.count(there[index].shape)
    return starts, start


def _order_of(there: Mapping[int, Tensor], wanted: Wanted) -> UnitOrder:
    """Returns the order in which somebody gets units: those of tensors of one shape together, as they are spread."""
    alike: dict[tuple[torch.device, torch.Size, Units], list[int]] = defaultdict(list)
    odd = []
    for number, index, units in wanted.places():
        if is_plain(there.get(index)):
            alike[there[index].device, there[index].shape, units].append(number)
        elif index in there:
            odd.append(number)
    return UnitOrder(
        tuple(Block(tuple(numbers), units, shape, device) for (device, shape, units), numbers in alike.items()),
        tuple(odd),
    )


def _as_rows(stack: Tensor) -> Tensor:
    return stack.flatten(1) if stack.dim() > 1 else stack.unsqueeze(1)


def _is_large(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.numel() >= LONG


def _norm_of_odd(tensor: Tensor) -> Tensor:
    values = dense_values(tensor)
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return torch.linalg.vector_norm(values, dtype=accumulator(values.dtype)).view(1)


def _largest_of_odd(tensor: Tensor) -> Tensor:
    values = dense_values(tensor).abs()
    return values.amax().view(1) if values.numel() else values.new_zeros(1)
