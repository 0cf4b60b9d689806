"""Norms and largest elements of many tensors at once: how each is best measured, found once and kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lightning_gradguard.measurement.units import LONG, Run, UnitNorms, UnitOrder, Units, norms_of_pieces

# Same-shape tensors up to this size are stacked and measured by one call: dispatch costs more than the copy.
_STACK_NUMEL = 4096
_STACK_COUNT = 4

_Found = TypeVar("_Found")


def dense_values(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a dense real or complex one."""
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The real dtype in which numbers of ``dtype`` are summed: at least float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


class Norms:
    """Measures lists of tensors that look alike from one call to the next, such as the gradients of each step.

    Which tensors are stacked, which are cut into pieces and which go through ``torch._foreach_norm`` is planned at the
    first call, and again when tensors come or go or no longer fit. Planning costs about as much as measuring.

    Args:
        units: for each tensor its units, if they are to be measured, too; ``None`` for none.
    """

    def __init__(self, units: Sequence[Units | None] | None = None) -> None:
        self.units = units
        self._plan: _Plan | None = None

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """l2 norm of each tensor, ``[len(tensors)]``, on the first tensor's device; 0 for ``None``."""
        return self.with_units(tensors)[0]

    def with_units(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor, UnitNorms | None]:
        """Likewise, and from the same pass the norms of :attr:`units`, if there are any.

        Tensors that are not there, sparse, complex or empty ones have none.
        """
        return self._by_plan(_Plan.norms, tensors)

    def of_units(self, tensors: Sequence[Tensor | None]) -> UnitNorms:
        """The norms of :attr:`units` alone; on an object that is asked for nothing else."""
        _, found = self._by_plan(_Plan.norms, tensors, only_units=True)
        assert found is not None
        return found

    def largest(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Largest absolute element of each tensor, likewise; NaN if one is; 0 for ``None`` and empty ones."""
        return self._by_plan(_Plan.largest, tensors)

    def also(self, units: Mapping[int, Units], num: int) -> None:
        """Measures the units of some of ``num`` tensors, too, from the next time on."""
        merged = [units.get(index, known) for index, known in enumerate(self.units or [None] * num)]
        if merged != self.units:
            self.units, self._plan = merged, None

    def _by_plan(
        self,
        measure: Callable[[_Plan, Sequence[Tensor | None]], _Found],
        tensors: Sequence[Tensor | None],
        only_units: bool = False,
    ) -> _Found:
        present = [tensor is not None for tensor in tensors]
        if self._plan is not None and self._plan.present == present:
            try:
                return measure(self._plan, tensors)
            except (RuntimeError, IndexError):  # another shape, dtype, device or layout than was planned for
                pass
        self._plan = _make_plan(tensors, present, self.units, only_units)
        return measure(self._plan, tensors)


@dataclass(frozen=True)
class _Group:
    """Tensors of one device that are measured by one call.

    Attributes:
        indices: which of the list.
        dtype: in which they are summed.
        large: those to cut into pieces first, as positions in ``indices``.
        units: those whose units are measured, as indices, with their position in ``indices`` if the tensor's norm is
            that of its units' norms, and with what measures them. In a stack, one entry for all.
    """

    indices: tuple[int, ...]
    dtype: torch.dtype
    large: tuple[int, ...] = ()
    units: tuple[tuple[int, int | None, Callable[[Tensor], Tensor]], ...] = ()

    def of(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        return [tensors[index] for index in self.indices]  # type: ignore[misc]


@dataclass(frozen=True)
class _Plan:
    """How each tensor of a list is measured.

    Attributes:
        present: for each of them whether it is there.
        odd: indices of sparse, complex and empty tensors, measured one by one.
        stacks: small ones of one shape.
        lists: all others.
        order: for each tensor its place among the results of odd, stacks, lists, in this order, and one zero.
        zero: what is put in for tensors that are not there, of the result's device and dtype.
        units: in what order units are given; ``None`` if they are not measured.
        unit_places: their places among all results, of units last.
        num_results: how many results there are, with the zero.
        only_units: whether norms of tensors that have units are left out, and :attr:`order` means nothing.
        at_home: whether all results are of the device and dtype of the zero.
    """

    present: list[bool]
    odd: tuple[int, ...]
    stacks: tuple[_Group, ...]
    lists: tuple[_Group, ...]
    order: Tensor
    zero: Tensor
    units: UnitOrder | None = None
    unit_places: Tensor | None = None
    num_results: int = 0
    only_units: bool = False
    at_home: bool = False

    def norms(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor, UnitNorms | None]:
        pieces = [_norm_of_odd(tensors[index]) for index in self.odd]  # type: ignore[arg-type]
        units: list[Tensor] = []
        for group in self.stacks:
            stack = torch.stack(group.of(tensors))
            rows = None
            for _, derived, unit_norms in group.units:
                each = unit_norms(stack)
                units.append(each.flatten())
                rows = None if derived is None else each
            if not (self.only_units and group.units):
                rows = _as_rows(stack) if rows is None else rows
                pieces.append(torch.linalg.vector_norm(rows, dim=1, dtype=group.dtype))
        for group in self.lists:
            found = group.of(tensors)
            for position in group.large:
                found[position] = norms_of_pieces(found[position], 1, group.dtype)
            for index, place, unit_norms in group.units:
                each = unit_norms(tensors[index])  # type: ignore[arg-type]
                units.append(each)
                if place is not None:
                    found[place] = each if each.numel() < LONG else norms_of_pieces(each, 1, group.dtype)
            if found:
                pieces.append(torch.stack(torch._foreach_norm(found, 2.0, group.dtype)))
        everything = self._together([*pieces, self.zero, *units])
        if everything.numel() != self.num_results:
            raise RuntimeError("there are more or fewer units than were planned for")
        if self.units is None or self.unit_places is None:
            return everything.index_select(0, self.order), None
        units_in_order = UnitNorms(everything.index_select(0, self.unit_places), self.units)
        return everything if self.only_units else everything.index_select(0, self.order), units_in_order

    def largest(self, tensors: Sequence[Tensor | None]) -> Tensor:
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


def is_plain(tensor: Tensor | None) -> bool:
    """Whether it is measured with others: there, dense, real and not empty."""
    return tensor is not None and tensor.layout == torch.strided and not tensor.is_complex() and bool(tensor.numel())


def _make_plan(
    tensors: Sequence[Tensor | None],
    present: list[bool],
    units: Sequence[Units | None] | None,
    only_units: bool,
) -> _Plan:
    there = {index: tensor for index, tensor in enumerate(tensors) if tensor is not None}
    kinds = {i: units[i] if units is not None and is_plain(tensor) else None for i, tensor in there.items()}
    odd: list[int] = []
    alike: dict[tuple[torch.device, torch.dtype, torch.Size, Units | None], list[int]] = defaultdict(list)
    others: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in there.items():
        if not is_plain(tensor):
            odd.append(index)
        elif tensor.numel() <= _STACK_NUMEL:
            alike[tensor.device, tensor.dtype, tensor.shape, kinds[index]].append(index)
        else:
            others[tensor.device, tensor.dtype].append(index)
    stacks = []
    for (device, dtype, shape, kind), indices in alike.items():
        if len(indices) < _STACK_COUNT:
            others[device, dtype].extend(indices)
        else:
            stacks.append(_stack_group(indices, shape, kind, accumulator(dtype)))
    lists = [
        _list_group({i: there[i] for i in indices}, kinds, accumulator(dtype), only_units)
        for (_, dtype), indices in others.items()
    ]
    return _in_order(there, present, kinds, odd, stacks, lists, None if units is None else only_units)


def _stack_group(indices: Sequence[int], shape: torch.Size, kind: Units | None, dtype: torch.dtype) -> _Group:
    if kind is None or kind.whole:
        return _Group(tuple(indices), dtype)
    derived = 0 if kind.rows else None
    return _Group(tuple(indices), dtype, units=((-1, derived, kind.measurer(shape, dtype, stacked=True)),))


def _list_group(
    tensors: Mapping[int, Tensor], kinds: Mapping[int, Units | None], dtype: torch.dtype, only_units: bool
) -> _Group:
    """Tensors that are measured by one ``torch._foreach_norm``, their units one by one."""
    split = {i: kind for i in tensors if (kind := kinds[i]) is not None and not kind.whole}
    indices = [i for i in tensors if not (only_units and i in split)]
    place = {i: p for p, i in enumerate(indices)}
    derived = {i for i, kind in split.items() if i in place and kind.rows and _rows_lie_apart(tensors[i])}
    large = [p for i, p in place.items() if i not in derived and _is_large(tensors[i])]
    units = tuple(
        (i, place[i] if i in derived else None, kind.measurer(tensors[i].shape, dtype)) for i, kind in split.items()
    )
    return _Group(tuple(indices), dtype, tuple(large), units)


def _in_order(
    there: Mapping[int, Tensor],
    present: list[bool],
    kinds: Mapping[int, Units | None],
    odd: list[int],
    stacks: list[_Group],
    lists: list[_Group],
    only_units: bool | None,
) -> _Plan:
    """Finds the place of each result."""
    listed = [i for group in stacks if not (only_units and group.units) for i in group.indices]
    found = [*odd, *listed, *(i for group in lists for i in group.indices)]
    place = {index: position for position, index in enumerate(found)}
    order = [place.get(index, len(found)) for index in range(len(present))]
    home = next((tensor.device for tensor in there.values()), torch.device("cpu"))
    wide = torch.float64 in [accumulator(tensor.dtype) for tensor in there.values()]
    plan = _Plan(
        present=present,
        odd=tuple(odd),
        stacks=tuple(stacks),
        lists=tuple(lists),
        order=torch.tensor(order, dtype=torch.int64, device=home),
        zero=torch.zeros(1, dtype=torch.float64 if wide else torch.float32, device=home),
        num_results=len(found) + 1,
        at_home={(tensor.device, accumulator(tensor.dtype) == torch.float64) for tensor in there.values()}
        == {(home, wide)},
    )
    if only_units is None:
        return plan
    starts, start = dict(place), len(found) + 1
    by_unit = [i for group in stacks if group.units for i in group.indices]
    for index in [*by_unit, *(i for group in lists for i, _, _ in group.units)]:
        starts[index] = start
        kind = kinds[index]
        start += kind.count(there[index].shape) if kind else 0
    alike: dict[tuple[torch.device, torch.Size, Units], list[int]] = defaultdict(list)
    for index, kind in kinds.items():
        if kind is not None:
            alike[there[index].device, there[index].shape, kind].append(index)
    runs = tuple(
        Run(tuple(alike[key]), key[2], key[1], key[0]) for key in sorted(alike, key=str)
    )  # the same for any part
    places = [starts[i] + unit for run in runs for i in run.indices for unit in range(run.num_each)]
    return replace(
        plan,
        units=UnitOrder(runs),
        unit_places=torch.tensor(places, dtype=torch.int64, device=home),
        num_results=start,
        only_units=only_units,
    )


def _as_rows(stack: Tensor) -> Tensor:
    return stack.flatten(1) if stack.dim() > 1 else stack.unsqueeze(1)


def _is_large(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.numel() >= LONG


def _rows_lie_apart(tensor: Tensor) -> bool:
    """Whether each row is in one place in memory: sums over such are exact enough to make a norm of."""
    return tensor.stride(0) * tensor.shape[0] >= tensor.numel()


def _norm_of_odd(tensor: Tensor) -> Tensor:
    values = dense_values(tensor)
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return torch.linalg.vector_norm(values, dtype=accumulator(values.dtype)).view(1)


def _largest_of_odd(tensor: Tensor) -> Tensor:
    values = dense_values(tensor).abs()
    return values.amax().view(1) if values.numel() else values.new_zeros(1)
