"""Brings back a batch that was turned into plain containers; nothing is imported, and no constructor runs."""

from __future__ import annotations

import enum
import weakref
from collections import defaultdict, deque
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.incident.batch import Part, blank_of, put, slots_of
from lightning_gradguard.incident.classes import can_be_made, imported, made_when_running
from lightning_gradguard.incident.codec import KIND
from lightning_gradguard.incident.plain import decode_plain
from lightning_gradguard.incident.unsaved import Standin, Unsaved

_FACTORIES = {kind.__name__: kind for kind in (list, dict, set, tuple, int, float, str, bool)}


def decode(value: Any) -> Any:
    """Returns what :func:`~lightning_gradguard.incident.codec.encode` was given.

    Objects come back as their own class where that is imported already and none of its code runs by itself.
    Otherwise as a plain tuple, list or dict, or as a :class:`~lightning_gradguard.incident.unsaved.Standin` with the
    same attributes.

    Raises:
        KeyError, TypeError, ValueError: for what ``encode`` never makes.
    """
    return _Decoder().decode(value)


class _Decoder:
    """One batch on its way back."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._done: dict[int, Any] = {}  # by the id of a container that occurs again: small files can mean large things

    def decode(self, value: Any) -> Any:
        if not isinstance(value, list | dict):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = self._decode(value)
        return self._done[id(value)]

    def _decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        kind = value.get(KIND)
        if not isinstance(kind, str):
            return {key: self.decode(item) for key, item in value.items()}
        method = getattr(self, f"_decode_{kind}", None)
        return decode_plain(kind, value["items"]) if method is None else method(value)

    def _decode_tuple(self, value: dict[str, Any]) -> Any:
        return tuple(self.decode(item) for item in value["items"])

    def _decode_set(self, value: dict[str, Any]) -> Any:
        return {self.decode(item) for item in value["items"]}

    def _decode_bytes(self, value: dict[str, Any]) -> Any:
        return b"" if value["items"] is None else value["items"].to(torch.uint8).numpy().tobytes()

    def _decode_mapping(self, value: dict[str, Any]) -> Any:
        return {self.decode(key): self.decode(item) for key, item in value["items"]}

    def _decode_objects(self, value: dict[str, Any]) -> Any:
        import numpy  # the batch had arrays, so the step needs it

        array = numpy.empty(len(value["items"]), dtype=object)
        for index, item in enumerate(value["items"]):
            array[index] = self.decode(item)
        return array.reshape([int(size) for size in value["shape"]])

    def _decode_enum(self, value: dict[str, Any]) -> Any:
        cls = imported(value["type"])
        if cls is None or not issubclass(cls, enum.Enum) or value["name"] not in cls.__members__:
            return Unsaved(str(value["name"]), f"a member of {value['type']}, which is not imported here")
        return cls.__members__[value["name"]]

    def _decode_unsaved(self, value: dict[str, Any]) -> Any:
        return Unsaved(str(value["path"]), str(value["description"]))

    def _decode_weakref(self, value: dict[str, Any]) -> Any:
        target = self.decode(value["to"])
        try:
            return _nothing if target is None else weakref.ref(target)
        except TypeError:  # a list or dict of Python's own, which stands in for what it was
            return lambda: target

    def _decode_same(self, value: dict[str, Any]) -> Any:
        return self._objects[value["number"]]

    def _decode_tensor(self, value: dict[str, Any]) -> Any:
        tensor, cls = value["tensor"], imported(value["type"])
        state = {str(name): self.decode(item) for name, item in value["state"].items()}
        if not isinstance(tensor, Tensor):
            raise TypeError("a tensor that is none")
        if cls is None or not issubclass(cls, Tensor) or not can_be_made(cls):
            return tensor
        made = tensor.as_subclass(cls)
        made.__dict__.update(state)
        return made

    def _decode_jagged(self, value: dict[str, Any]) -> Any:
        values, offsets, lengths, dim = (value[name] for name in ("values", "offsets", "lengths", "dim"))
        _check_jagged(values, offsets, lengths, dim)
        return torch.nested.nested_tensor_from_jagged(values, offsets, lengths, jagged_dim=dim)

    def _decode_object(self, value: dict[str, Any]) -> Any:
        """As its class if that is known and of the same kind; a container of Python's own, or a stand-in, otherwise."""
        cls = imported(value["type"]) or made_when_running([imported(base) for base in value["bases"]])
        if cls is not None and not can_be_made(cls):
            cls = None
        if "fields" in value:
            items = [self.decode(item) for item in value["sequence"]]
            is_same = (
                cls is not None and issubclass(cls, tuple) and list(getattr(cls, "_fields", ())) == value["fields"]
            )
            made: Any = tuple.__new__(cls, items) if is_same else tuple(items)
            self._objects[value["number"]] = made
            return made
        kinds: Any = dict if "mapping" in value else (list, deque) if "sequence" in value else None
        if cls is None or issubclass(cls, tuple) or issubclass(cls, (dict, list, deque)) != bool(kinds):
            made = Standin(str(value["type"])) if kinds is None or value["state"] else {} if kinds is dict else []
        elif kinds is not None and not issubclass(cls, kinds):
            raise TypeError(f"{value['type']} is no such container")
        else:
            made = blank_of(cls)
        self._objects[value["number"]] = made
        if isinstance(made, defaultdict):
            made.default_factory = _FACTORIES.get(str(value.get("factory")))
        self._fill(made, value)
        return made

    def _fill(self, made: Any, value: dict[str, Any]) -> None:
        # In the order of the encoder, and all of it: an object stands where it was met first.
        pairs = [(self.decode(key), self.decode(item)) for key, item in value.get("mapping", ())]
        sequence = [self.decode(item) for item in value.get("sequence", ())]
        state = {str(name): self.decode(item) for name, item in value["state"].items()}
        view = [(self.decode(key), self.decode(item)) for key, item in value["view"]]
        if isinstance(made, Standin):
            made.__dict__["_entries"] = dict(view or pairs or enumerate(sequence))
        elif isinstance(made, dict):
            for key, item in pairs:
                put(made, Part("[]", key, item))
        else:
            for index, item in enumerate(sequence):
                put(made, Part("[]", index, item))
        known = [] if hasattr(made, "__dict__") else slots_of(type(made))
        for name, item in state.items():
            if not hasattr(made, "__dict__") and name not in known:
                raise TypeError(f"{value['type']} has no attribute {name}")
            put(made, Part(f".{name}", name, item))


def _check_jagged(values: Any, offsets: Any, lengths: Any, dim: Any) -> None:
    """Refuses what would make torch read beyond the values.

    Raises:
        TypeError, ValueError: for what is no jagged tensor.
    """
    bounds = [bound for bound in (offsets, lengths) if bound is not None]
    if not all(type(tensor) is Tensor for tensor in (values, offsets, *bounds)) or type(dim) is not int:
        raise TypeError("a jagged tensor that is none")
    if not 1 <= dim <= values.dim() or any(b.dim() != 1 or b.dtype not in (torch.int32, torch.int64) for b in bounds):
        raise ValueError("a jagged tensor of another shape")
    starts, ends = offsets[:-1], offsets[1:] if lengths is None else offsets[:-1] + lengths
    is_in = bool((starts >= 0).all() and (ends >= starts).all() and (ends <= values.shape[dim - 1]).all())
    if len(offsets) < 2 or not is_in:
        raise ValueError("a jagged tensor with offsets beyond its values")


def _nothing() -> None:
    """Returns ``None``, as a weak reference to something that is gone does."""
