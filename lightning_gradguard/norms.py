"""Norms and largest elements of many tensors at once: how each is best measured, found once and kept."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Same-shape tensors up to this size are stacked and measured by one call: dispatch costs more than the copy.
_STACK_NUMEL = 4096
_STACK_COUNT = 4
# On CPU one full float32 reduction reads low by up to 7e-6 at this size, 1e-4 at 2**17, 1e-2 at 10**8: larger ones
# are measured in rows, and the norm is taken of the row norms.
_ROWS_NUMEL = 2**13
_ROW = 1024


def dense_values(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a dense real or complex one."""
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The real dtype in which numbers of ``dtype`` are summed: at least float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


class Norms:
    """Measures lists of tensors that look alike from one call to the next, such as the gradients of each step.

    Which tensors are stacked, which are cut into rows and which go through ``torch._foreach_norm`` is planned at the
    first call, and again when tensors come or go or no longer fit. Planning costs about as much as measuring.
    """

    def __init__(self) -> None:
        self._plan: _Plan | None = None

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """l2 norm of each tensor, ``[len(tensors)]``, on the first tensor's device; 0 for ``None``."""
        return self._by_plan(_Plan.norms, tensors)

    def largest(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Largest absolute element of each tensor, likewise; NaN if one is; 0 for ``None`` and empty ones."""
        return self._by_plan(_Plan.largest, tensors)

    def _by_plan(
        self, measure: Callable[[_Plan, Sequence[Tensor | None]], Tensor], tensors: Sequence[Tensor | None]
    ) -> Tensor:
        present = [tensor is not None for tensor in tensors]
        if self._plan is not None and self._plan.present == present:
            try:
                return measure(self._plan, tensors)
            except RuntimeError:  # another shape, dtype, device or layout than was planned for
                pass
        self._plan = _make_plan(tensors, present)
        return measure(self._plan, tensors)


@dataclass(frozen=True)
class _Group:
    """Tensors of one device that are measured by one call.

    Attributes:
        indices: which of the list.
        dtype: in which they are summed.
        large: those to cut into rows first, as positions in ``indices``.
    """

    indices: tuple[int, ...]
    dtype: torch.dtype
    large: tuple[int, ...] = ()

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
    """

    present: list[bool]
    odd: tuple[int, ...]
    stacks: tuple[_Group, ...]
    lists: tuple[_Group, ...]
    order: Tensor
    zero: Tensor

    def norms(self, tensors: Sequence[Tensor | None]) -> Tensor:
        pieces = [_norm_of_odd(tensors[index]) for index in self.odd]  # type: ignore[arg-type]
        for group in self.stacks:
            rows = torch.stack(group.of(tensors)).flatten(1)
            pieces.append(torch.linalg.vector_norm(rows, dim=1, dtype=group.dtype))
        for group in self.lists:
            found = group.of(tensors)
            for position in group.large:
                found[position] = _norms_of_rows(found[position], group.dtype)
            pieces.append(torch.stack(torch._foreach_norm(found, 2.0, group.dtype)))
        return self._in_order(pieces)

    def largest(self, tensors: Sequence[Tensor | None]) -> Tensor:
        # aminmax reads at memory speed; abs().amax() and the infinity norm do not.
        pieces = [_largest_of_odd(tensors[index]) for index in self.odd]  # type: ignore[arg-type]
        for group in self.stacks:
            low, high = torch.aminmax(torch.stack(group.of(tensors)).flatten(1), dim=1)
            pieces.append(torch.maximum(-low, high))
        for group in self.lists:
            lows, highs = zip(*map(torch.aminmax, group.of(tensors)), strict=True)
            pieces.append(torch.maximum(-torch.stack(lows), torch.stack(highs)))
        return self._in_order(pieces)

    def _in_order(self, pieces: list[Tensor]) -> Tensor:
        pieces.append(self.zero)
        return torch.cat([piece.to(self.zero, non_blocking=True) for piece in pieces])[self.order]


def _make_plan(tensors: Sequence[Tensor | None], present: list[bool]) -> _Plan:
    there = {index: tensor for index, tensor in enumerate(tensors) if tensor is not None}
    odd: list[int] = []
    alike: dict[tuple[torch.device, torch.dtype, torch.Size], list[int]] = defaultdict(list)
    others: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in there.items():
        if tensor.layout != torch.strided or tensor.is_complex() or not tensor.numel():
            odd.append(index)
        elif tensor.numel() <= _STACK_NUMEL:
            alike[tensor.device, tensor.dtype, tensor.shape].append(index)
        else:
            others[tensor.device, tensor.dtype].append(index)
    stacks = []
    for (device, dtype, _), indices in alike.items():
        if len(indices) < _STACK_COUNT:
            others[device, dtype].extend(indices)
        else:
            stacks.append(_Group(tuple(indices), accumulator(dtype)))
    lists = []
    for (device, dtype), indices in others.items():
        large = [p for p, i in enumerate(indices) if device.type == "cpu" and there[i].numel() >= _ROWS_NUMEL]
        lists.append(_Group(tuple(indices), accumulator(dtype), tuple(large)))

    found = [*odd, *(index for group in (*stacks, *lists) for index in group.indices)]
    place = {index: position for position, index in enumerate(found)}
    order = [place.get(index, len(found)) for index in range(len(tensors))]
    home = next((tensor.device for tensor in there.values()), torch.device("cpu"))
    wide = torch.float64 in [accumulator(tensor.dtype) for tensor in there.values()]
    return _Plan(
        present=present,
        odd=tuple(odd),
        stacks=tuple(stacks),
        lists=tuple(lists),
        order=torch.tensor(order, dtype=torch.int64, device=home),
        zero=torch.zeros(1, dtype=torch.float64 if wide else torch.float32, device=home),
    )


def _norm_of_odd(tensor: Tensor) -> Tensor:
    values = dense_values(tensor)
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return torch.linalg.vector_norm(values, dtype=accumulator(values.dtype)).view(1)


def _largest_of_odd(tensor: Tensor) -> Tensor:
    values = dense_values(tensor).abs()
    return values.amax().view(1) if values.numel() else values.new_zeros(1)


def _norms_of_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms of the pieces of a large tensor, few enough for one reduction; its norm is the norm of them."""
    width = _row_width(tensor.numel())
    if width:
        rows = torch.linalg.vector_norm(tensor.reshape(-1, width), dim=1, dtype=dtype)
    else:
        flat, rest = tensor.reshape(-1), tensor.numel() % _ROW
        rows = torch.linalg.vector_norm(flat[:-rest].view(-1, _ROW), dim=1, dtype=dtype)
        rows = torch.cat([rows, torch.linalg.vector_norm(flat[-rest:], dtype=dtype).view(1)])
    return rows if rows.numel() < _ROWS_NUMEL else _norms_of_rows(rows, dtype)


@functools.cache
def _row_width(numel: int) -> int:
    """A width of rows that divides the tensor; 0 if there is none near."""
    return next((width for width in range(_ROW, _ROW // 4, -1) if numel % width == 0), 0)
