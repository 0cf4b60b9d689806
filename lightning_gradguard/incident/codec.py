"""Turns a batch into containers that ``torch.load(weights_only=True)`` reads, and back."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_KIND = "__gradguard__"
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.Size, torch.device)


class Unsaved:
    """Stands where something was that could not be saved safely.

    Attributes:
        path: the expression that reached it, e.g. ``"batch['meta']"``.
        description: its type and the beginning of its ``repr``.
    """

    def __init__(self, path: str, description: str) -> None:
        self.path = path
        self.description = description


def encode(value: Any, path: str = "batch", unsaved: list[str] | None = None) -> Any:
    """A copy made of tensors, numbers, strings, lists and dicts alone.

    Tuples, named tuples, sets, NumPy arrays, bytes and dataclasses become a dict that says what they were. A tensor
    that is a view of a larger memory is copied, so that a slice of a data set does not take the whole set along.
    Anything else is described.

    Args:
        value: what to encode.
        path: the expression that reaches it, for the descriptions.
        unsaved: gets one line for everything that was described instead of saved.

    Example:
        >>> encode({"x": (1, 2)})
        {'x': {'__gradguard__': 'tuple', 'items': [1, 2]}}
    """
    unsaved = [] if unsaved is None else unsaved
    if isinstance(value, Tensor) and type(value) in (Tensor, torch.nn.Parameter):
        tensor = value.detach()
        is_view = tensor.layout == torch.strided and tensor.untyped_storage().nbytes() > tensor.nbytes
        return tensor.clone() if is_view else tensor
    if type(value) in _PLAIN:
        return value
    if type(value) is list:
        return [encode(item, f"{path}[{index}]", unsaved) for index, item in enumerate(value)]
    if isinstance(value, tuple):
        items = [encode(item, f"{path}[{index}]", unsaved) for index, item in enumerate(value)]
        if hasattr(value, "_fields"):
            return {_KIND: "namedtuple", "type": _type_name(value), "fields": list(value._fields), "items": items}
        return {_KIND: "tuple", "items": items}
    if isinstance(value, set | frozenset) and all(type(item) in _PLAIN for item in value):
        return {_KIND: "set", "items": list(value)}
    if isinstance(value, bytes | bytearray):
        return {_KIND: "bytes", "items": torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        encoded = {name: encode(item, f"{path}.{name}", unsaved) for name, item in fields.items()}
        return {_KIND: "dataclass", "type": _type_name(value), "fields": encoded}
    if isinstance(value, Mapping) and all(type(key) in (str, int, float, bool) for key in value):
        entries = {key: encode(value[key], f"{path}[{key!r}]", unsaved) for key in value}
        return {_KIND: "mapping", "items": entries} if _KIND in entries else entries
    array = _as_array(value)
    if array is not None:
        return array
    description = f"{_type_name(value)}: {repr(value)[:200]}"
    unsaved.append(f"{path} ({description})")
    return {_KIND: "unsaved", "path": path, "description": description}


def decode(value: Any) -> Any:
    """What :func:`encode` was given.

    Named tuples and dataclasses come back as their own class if that is already imported (nothing is imported, and no
    constructor runs); otherwise as a plain tuple, or an object with the same attributes. Mappings come back as dicts.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None or not isinstance(kind, str):
        return {key: decode(item) for key, item in value.items()}
    return _DECODERS[kind](value)


def find_unsaved(value: Any) -> list[Unsaved]:
    """Every :class:`Unsaved` in a decoded batch."""
    if isinstance(value, Unsaved):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, SimpleNamespace):
        value = list(vars(value).values())
    return [found for item in value for found in find_unsaved(item)] if isinstance(value, list | tuple) else []


def map_tensors(value: Any, change: Callable[[str, Tensor], Tensor], path: str = "batch") -> Any:
    """A copy of a batch with every tensor replaced by ``change(path, tensor)``."""
    if isinstance(value, Tensor):
        return change(path, value)
    if type(value) is dict:
        return {key: map_tensors(item, change, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(item, change, f"{path}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple.__new__(type(value), items)
    if dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
        names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else list(vars(value))
        value = copy.copy(value)
        for name in names:
            object.__setattr__(value, name, map_tensors(getattr(value, name), change, f"{path}.{name}"))
    return value


def _as_array(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.generic) and value.dtype.kind in "biufc":
        return value.item()
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
        return {_KIND: "array", "items": torch.from_numpy(value.copy())}
    return None


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _imported(name: str) -> Any:
    """A class by name, from modules that are imported already."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and f"{found.__module__}:{found.__qualname__}" == name else None


def _decode_dataclass(value: dict[str, Any]) -> Any:
    fields = {name: decode(item) for name, item in value["fields"].items()}
    cls = _imported(value["type"])
    if cls is None or not dataclasses.is_dataclass(cls) or {f.name for f in dataclasses.fields(cls)} != set(fields):
        return SimpleNamespace(**fields)
    made: Any = object.__new__(cls)  # type: ignore[arg-type]
    for name, item in fields.items():
        object.__setattr__(made, name, item)
    return made


def _decode_namedtuple(value: dict[str, Any]) -> Any:
    items = [decode(item) for item in value["items"]]
    cls = _imported(value["type"])
    if cls is None or not issubclass(cls, tuple) or list(getattr(cls, "_fields", ())) != value["fields"]:
        return tuple(items)
    return tuple.__new__(cls, items)


_DECODERS: dict[str, Any] = {
    "tuple": lambda value: tuple(decode(item) for item in value["items"]),
    "namedtuple": _decode_namedtuple,
    "set": lambda value: set(value["items"]),
    "bytes": lambda value: b"" if value["items"] is None else bytes(value["items"].tolist()),
    "dataclass": _decode_dataclass,
    "mapping": lambda value: {key: decode(item) for key, item in value["items"].items()},
    "array": lambda value: value["items"].numpy(),
    "unsaved": lambda value: Unsaved(value["path"], value["description"]),
}
