"""Turns a batch into containers that ``torch.load(weights_only=True)`` reads; ``decode`` brings them back."""

from __future__ import annotations

import enum
import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.incident.batch import Part, is_array, parts_of, walk
from lightning_gradguard.incident.classes import can_be_made, type_name
from lightning_gradguard.incident.plain import encode_plain
from lightning_gradguard.incident.unsaved import Unsaved

KIND = "__gradguard__"
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.Size, torch.device)
_TENSOR_STATE = frozenset({"_backward_hooks", "_post_accumulate_grad_hooks", "requires_grad", "grad"})


def encode(value: Any, path: str = "batch", unsaved: list[str] | None = None) -> Any:
    """Returns a copy made of tensors, numbers, strings, lists and dicts alone.

    Other containers, dates, paths, enums, arrays and objects with attributes become a dict that says what they were;
    objects that refer to each other still do. A tensor that is a view of a larger memory is copied, so that a slice
    of a data set does not take the whole set along. Anything else is described.

    Args:
        value: what to encode.
        path: the expression that reaches it, for the descriptions.
        unsaved: gets one line for everything that was described instead of saved.

    Example:
        >>> encode({"x": (1, 2)})
        {'x': {'__gradguard__': 'tuple', 'items': [1, 2]}}
    """
    return _Encoder([] if unsaved is None else unsaved).encode(value, path)


def encode_batches(batches: Sequence[Any], unsaved: list[str]) -> list[Any]:
    """:func:`encode` of several batches: what is one object in two of them stays one."""
    encoder = _Encoder(unsaved)
    paths = ["batch"] if len(batches) == 1 else [f"batches[{index}]" for index in range(len(batches))]
    return [encoder.encode(batch, path) for batch, path in zip(batches, paths, strict=True)]


def find_unsaved(value: Any) -> list[Unsaved]:
    """Every :class:`Unsaved` in a decoded batch."""
    return [item for _, item in walk(value) if isinstance(item, Unsaved)]


class _Encoder:
    """One batch on its way into plain containers.

    Tensors and objects that were met before are not encoded again: what was one object stays one.
    """

    def __init__(self, unsaved: list[str]) -> None:
        self.unsaved = unsaved
        self._tensors: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()  # lists, tuples and dicts that are being encoded
        self._alive: list[Any] = []  # so that no id goes to another object meanwhile

    def encode(self, value: Any, path: str) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if type(value) is Unsaved:
            return self._describe(value, path)
        if type(value) in (list, dict, tuple):
            return self._builtin(value, path)
        if isinstance(value, weakref.ref):
            return {KIND: "weakref", "to": self.encode(value(), path)}
        if isinstance(value, enum.Enum):
            return {KIND: "enum", "type": type_name(type(value)), "name": value.name}
        if isinstance(value, bytes | bytearray):
            return {KIND: "bytes", "items": torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else None}
        if isinstance(value, set | frozenset):
            return {KIND: "set", "items": [self.encode(item, f"{path}.item") for item in value]}
        if (plain := encode_plain(value)) is not None:
            return {KIND: plain[0], "items": plain[1]}
        if is_array(value) and value.dtype.kind == "O":
            items = [self.encode(item, f"{path}.item") for item in value.ravel()]
            return {KIND: "objects", "shape": list(value.shape), "items": items}
        return self._object(value, path)

    def _tensor(self, value: Tensor, path: str) -> Any:
        if id(value) not in self._tensors:
            self._alive.append(value)
            self._tensors[id(value)] = self._new_tensor(value, path)
        return self._tensors[id(value)]

    def _new_tensor(self, value: Tensor, path: str) -> Any:
        tensor = value.detach()
        if value.device.type == "meta":
            return self._describe(value, path, "a tensor without numbers")
        if type(value) in (Tensor, torch.nn.Parameter):
            return tensor.to_dense() if tensor.layout == torch._mkldnn else _own(tensor)  # type: ignore[attr-defined]
        if value.layout == torch.jagged:
            return self._jagged(tensor, path)
        if hasattr(value, "__tensor_flatten__") or not can_be_made(type(value)):
            return self._describe(value, path)
        state = {name: self.encode(i, f"{path}.{name}") for name, i in vars(value).items() if name not in _TENSOR_STATE}
        plain = _own(tensor.as_subclass(Tensor))
        return {KIND: "tensor", "type": type_name(type(value)), "tensor": plain, "state": state}

    def _jagged(self, tensor: Any, path: str) -> Any:
        """A jagged tensor in parts: torch would read it back only where its own code for them is imported already.

        Tensors that share their offsets still do, so that they can be added.
        """
        bounds = tensor.offsets(), tensor.lengths()
        offsets, lengths = (None if bound is None else self._tensor(bound, path) for bound in bounds)
        dim, values = tensor._ragged_idx, _own(tensor.values())
        return {KIND: "jagged", "values": values, "offsets": offsets, "lengths": lengths, "dim": dim}

    def _builtin(self, value: Any, path: str) -> Any:
        if id(value) in self._open:
            return self._describe(value, path, "inside itself")
        self._open.add(id(value))
        parts = parts_of(value) or []
        if type(value) is dict and KIND not in value and all(type(p.key) in (str, int, float, bool) for p in parts):
            encoded: Any = {part.key: self.encode(part.item, path + part.suffix) for part in parts}
        elif type(value) is dict:
            encoded = {KIND: "mapping", "items": self._pairs(parts, path)}
        else:
            encoded = [self.encode(part.item, path + part.suffix) for part in parts]
            encoded = encoded if type(value) is list else {KIND: "tuple", "items": encoded}
        self._open.discard(id(value))
        return encoded

    def _pairs(self, parts: list[Part], path: str) -> list[Any]:
        return [[self.encode(p.key, f"{path}.key"), self.encode(p.item, path + p.suffix)] for p in parts]

    def _object(self, value: Any, path: str) -> Any:
        """A named tuple, a container or an object of a class of its own: the name of the class, and what is in it."""
        if id(value) in self._open:
            return self._describe(value, path, "inside itself")
        if id(value) in self._numbers:
            return {KIND: "same", "number": self._numbers[id(value)]}
        cls, parts = type(value), parts_of(value)
        if parts is None or not can_be_made(cls):
            return self._describe(value, path)
        self._alive.append(value)
        number = self._numbers[id(value)] = len(self._numbers)
        bases = [type_name(base) for base in cls.__bases__]
        encoded: dict[str, Any] = {KIND: "object", "number": number, "type": type_name(cls), "bases": bases}
        inside = [part for part in parts if not part.suffix.startswith(".")]
        if isinstance(value, tuple):  # is made when its items are there: none of them can hold it
            self._open.add(id(value))
            encoded["sequence"] = [self.encode(part.item, path + part.suffix) for part in inside]
            self._open.discard(id(value))
            return encoded | {"fields": list(getattr(value, "_fields", ()))}
        if isinstance(value, dict):
            encoded["mapping"] = self._pairs(inside, path)
        elif isinstance(value, list | deque):
            encoded["sequence"] = [self.encode(part.item, path + part.suffix) for part in inside]
        if isinstance(value, defaultdict):
            encoded["factory"] = getattr(value.default_factory, "__name__", None)
        attributes = [part for part in parts if part.suffix.startswith(".")]
        encoded["state"] = {part.key: self.encode(part.item, path + part.suffix) for part in attributes}
        encoded["view"] = self._pairs(_view_of(value), path)
        return encoded

    def _describe(self, value: Any, path: str, why: str | None = None) -> Any:
        description = f"{type_name(type(value))}: {(why or repr(value))[:200]}"
        self.unsaved.append(f"{path} ({description})")
        return {KIND: "unsaved", "path": path, "description": description}


def _own(tensor: Tensor) -> Tensor:
    """Returns the tensor, or a copy where it is a view of a larger memory."""
    is_dense = tensor.layout == torch.strided and not tensor.is_nested
    return tensor.clone() if is_dense and tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _view_of(value: Any) -> list[Part]:
    """Returns what an object answers to as a mapping, for a replay that does not know its class."""
    if isinstance(value, dict) or not callable(getattr(type(value), "keys", None)):
        return []
    try:
        return [Part(f"[{key!r}]", key, value[key]) for key in value.keys()]  # noqa: SIM118
    except Exception:  # an object with keys of its own kind
        return []
