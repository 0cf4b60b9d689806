"""Counts what an operation costs: calls of operators, and reads of device values on the host."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# What makes the host wait for the device on CUDA.
_HOST_READS = ("aten._local_scalar_dense.default", "aten.item.default", "aten.nonzero.default", "aten.equal.default")


class Counting(TorchDispatchMode):
    """A context in which every operator call is counted by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def num_calls(self) -> int:
        return sum(self.calls.values())

    @property
    def host_reads(self) -> int:
        return sum(self.calls[name] for name in _HOST_READS)
