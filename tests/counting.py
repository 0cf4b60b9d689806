"""Counts what an operation costs: calls of operators, elements they touch, and reads of device values on the host."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for the device on CUDA.
_HOST_READS = ("aten._local_scalar_dense.default", "aten.item.default", "aten.nonzero.default", "aten.equal.default")


class Counting(TorchDispatchMode):
    """A context in which every operator call is counted.

    Attributes:
        calls: how often each operator was called, by name.
        read: elements of all inputs; a view reads none.
        written: elements of all outputs, new or in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.read = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.read += _elements((args, kwargs))
            in_place = func._schema.name.endswith("_")
            self.written += _elements(args[0]) if in_place else _elements(result)
        return result

    @property
    def num_calls(self) -> int:
        return sum(self.calls.values())

    @property
    def host_reads(self) -> int:
        return sum(self.calls[name] for name in _HOST_READS)


def _elements(values: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
