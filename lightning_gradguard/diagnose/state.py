"""What a rule remembers, as plain values that a checkpoint may hold, and back."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from lightning_gradguard.record import Finding

_PLAIN = (bool, int, float, str, type(None))
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def memory_of(thing: object) -> dict[str, Any]:
    """All attributes of an object but its constructor's arguments, packed: those are the user's, and may be new.

    Example:
        >>> from lightning_gradguard.diagnose import Runaway
        >>> memory_of(Runaway(growth=10.0))["_early"]
        {'list': []}

    Raises:
        TypeError: if it remembers something that is neither plain, nor a container, nor an object of such.
    """
    settings = () if is_dataclass(thing) else inspect.signature(type(thing).__init__).parameters
    return {name: _pack(value) for name, value in vars(thing).items() if name not in settings}


def remember(thing: object, memory: Mapping[str, Any]) -> None:
    """Gives an object back what :func:`memory_of` took from one like it; what it does not know is left out."""
    known = vars(thing)
    for name, packed in memory.items():
        if name in known:
            setattr(thing, name, _unpack(packed, known[name]))


def _pack(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Finding):
        return {"finding": _pack(asdict(value))}
    if isinstance(value, deque):
        return {"deque": [_pack(item) for item in value], "maxlen": value.maxlen}
    for name, kind in _SEQUENCES.items():
        if type(value) is kind:
            return {name: [_pack(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if hasattr(value, "__dict__") and not callable(value):
        return {"object": memory_of(value)}
    raise TypeError(f"{type(value).__name__} cannot go into a checkpoint: let a rule remember plain values")


def _unpack(packed: Any, current: Any) -> Any:
    if not isinstance(packed, dict):
        return packed
    kind = next(iter(packed))
    content = packed[kind]
    if kind == "object":  # made by the constructor of whoever holds it, and now filled
        if hasattr(current, "__dict__"):
            remember(current, content)
        return current
    if kind == "dict":
        return {_unpack(key, None): _unpack(item, None) for key, item in content}
    if kind == "finding":
        return Finding(**_unpack(content, None))
    if kind == "deque":
        return deque((_unpack(item, None) for item in content), maxlen=packed["maxlen"])
    return _SEQUENCES[kind](_unpack(item, None) for item in content)
