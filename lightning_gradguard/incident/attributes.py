"""Plain attributes of modules: numbers and tensors that are no weights, which hooks of a run set and change."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.incident.trace import is_finite
from lightning_gradguard.measurement.layout import clean_name

_NUMBERS = frozenset({bool, int, float, complex, type(None)})
_KEPT_BEFORE_A_BATCH = frozenset({Tensor, tuple})
_MOST_ENTRIES = 1000
_MOST_BYTES = 2**24  # what is larger is data, not state

Attributes = dict[str, tuple[dict[str, Any], list[str]]]


def is_plain(value: Any, depth: int = 3) -> bool:
    """Tells whether a value is a number, a tensor of moderate size, or a short container of them.

    No string: a word may be a path that the module writes to, and bundles are not trusted with those.
    """
    if type(value) in _NUMBERS:
        return True
    if type(value) is Tensor:
        return value.layout == torch.strided and not value.is_nested and value.nbytes <= _MOST_BYTES
    if type(value) in (list, tuple, deque) and depth and len(value) <= _MOST_ENTRIES:
        return all(is_plain(item, depth - 1) for item in value)
    if type(value) is dict and depth and len(value) <= _MOST_ENTRIES:
        return all(type(key) in (str, int) and is_plain(item, depth - 1) for key, item in value.items())
    return False


class AttributeWatch:
    """Tells which plain attributes of a module and its parts a replay would not find in a freshly built one.

    Args:
        module: as it is when a fit starts.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: dict[str, Any] = {}
        self._at_start = {name: _marks(part) for name, part in module.named_modules()}

    def before_batch(self) -> None:
        """Keeps references to the outermost module's own tensors: a step may put others in their place.

        Not its numbers: hooks that come between this call and the step count and anneal with them.
        """
        kept = _KEPT_BEFORE_A_BATCH
        self._before = {name: value for name, value in self._module.__dict__.items() if type(value) in kept}

    def now(self) -> Attributes:
        """By module: its plain attributes, and the names of those that have changed in the run.

        Tensors of the outermost module are those from before the batch; all else is as the step left it, but for
        tensors of its parts that are not finite now.
        """
        found: Attributes = {}
        for name, part in self._module.named_modules():
            values = {key: value for key, value in part.__dict__.items() if key[:1] != "_"}
            if part is self._module:
                values = {key: self._before.get(key, value) for key, value in values.items()}
            else:
                values = {k: v for k, v in values.items() if not isinstance(v, Tensor) or is_finite(v)}
            values = {key: value for key, value in values.items() if is_plain(value)}
            start = self._at_start.get(name, {})
            changed = [key for key, value in values.items() if key not in start or start[key] != _mark(value)]
            if values:
                found[clean_name(name)] = values, changed
        return found


def _marks(part: nn.Module) -> dict[str, Any]:
    return {key: _mark(value) for key, value in part.__dict__.items() if key[:1] != "_" and is_plain(value)}


def _mark(value: Any) -> Any:
    """Returns what tells a value from another one later, without keeping the value."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, list | tuple | deque):
        return tuple(map(_mark, value))
    return {key: _mark(item) for key, item in value.items()} if isinstance(value, dict) else repr(value)
