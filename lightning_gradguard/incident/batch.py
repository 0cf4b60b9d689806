"""Walks a batch, whatever it is made of, and puts a changed copy of it together."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import sys
import types
import uuid
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# What has nothing inside that a training step could compute with.
_WHOLE = (
    str, bytes, bytearray, bool, int, float, complex, type(None), range, slice, type, enum.Enum, weakref.ref,
    torch.dtype, torch.Size, torch.device, pathlib.PurePath, uuid.UUID, decimal.Decimal,
    datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo,
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip
_NUMBERS_AND_WORDS = frozenset({int, float, str, bool})
_DICTS = (OrderedDict, defaultdict, dict)


class Part(NamedTuple):
    """One part of a container or object.

    Attributes:
        suffix: the expression behind the container's own that reaches it: ``['x']``, ``[0]``, ``.x``.
        key: the key, index or name of the attribute.
        item: what is there.
    """

    suffix: str
    key: Any
    item: Any


def parts_of(value: Any) -> list[Part] | None:
    """Returns what is in a container or an object; ``None`` for tensors, arrays, numbers, strings, modules.

    Lists, tuples, dicts, and the attributes of any other object, those in slots as well. Nothing of the object's own
    code is run.

    Example:
        >>> [part.suffix for part in parts_of({"x": [1], "y": 2})]
        ["['x']", "['y']"]
    """
    if isinstance(value, dict):
        found = [Part(f"[{key!r}]", key, item) for key, item in dict.items(value)]
        return found if type(value) is dict else found + _attributes(value)
    if isinstance(value, list | tuple | deque):
        found = [Part(f"[{index}]", index, item) for index, item in enumerate(value)]
        return found if type(value) in (list, tuple) else found + _attributes(value)
    if is_array(value) and value.dtype.kind == "O" and value.ndim:
        return [Part(f".flat[{index}]", index, item) for index, item in enumerate(value.flat)]
    if isinstance(value, (Tensor, nn.Module, *_WHOLE)) or is_array(value):
        return None
    return _attributes(value) or None


def rebuild(batch: Any, change: Callable[[str, Any], Any], path: str = "batch") -> Any:
    """Returns a copy of a batch in which ``change(path, part)`` has replaced parts; it gives back what shall stay.

    Containers and objects keep their class, of which no code runs. What occurs twice is copied once, so that parts
    that were one object stay one, and objects may refer to each other.
    """
    return _rebuild(batch, change, path, {})


def map_tensors(batch: Any, change: Callable[[str, Tensor], Tensor], path: str = "batch") -> Any:
    """Returns a copy of a batch with every tensor replaced by ``change(path, tensor)``."""
    return rebuild(batch, lambda place, item: change(place, item) if isinstance(item, Tensor) else item, path)


def blank(value: Any) -> Any:
    """Returns a container or object of the same class with nothing in it, made without running any code of that class.

    Raises:
        TypeError: for classes that only C code can make.
    """
    if is_array(value):
        return value.copy()
    made = blank_of(type(value))
    if isinstance(value, defaultdict):
        made.default_factory = value.default_factory
    return made


def blank_of(cls: type) -> Any:
    """Returns an object of a class with nothing in it, made without running any code of that class."""
    base: Any = next((base for base in (*_DICTS, list, deque, types.SimpleNamespace) if issubclass(cls, base)), object)
    return base.__new__(cls)


def put(container: Any, part: Part) -> None:
    """Puts a part into a container or object, without running code of its class."""
    if is_array(container):
        container.flat[part.key] = part.item
    elif part.suffix.startswith("."):
        if part.key in slots_of(type(container)):
            object.__setattr__(container, part.key, part.item)
        else:
            container.__dict__[part.key] = part.item
    elif isinstance(container, dict):
        next(base for base in _DICTS if isinstance(container, base)).__setitem__(container, part.key, part.item)
    else:
        (list if isinstance(container, list) else deque).append(container, part.item)


def slots_of(cls: type) -> list[str]:
    """Names of the slots that Python code declared, of the class and its bases."""
    names: list[str] = []
    for base in cls.__mro__:
        declared = base.__dict__.get("__slots__", ())
        names += [declared] if isinstance(declared, str) else list(declared)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def is_array(value: Any) -> bool:
    """Tells whether an object is a NumPy array or scalar."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def walk(value: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Every part of a batch, containers before what is in them, with the expression that reaches it; each object once.

    Goes to any depth, and through objects that refer to each other. Lists of plain numbers and words are not taken
    apart.
    """
    seen: dict[int, Any] = {}  # with the objects themselves, so that no id goes to another one meanwhile
    stack = [(path, value)]
    while stack:
        path, item = stack.pop()
        if id(item) in seen:
            continue
        yield path, item
        if type(item) is list and _NUMBERS_AND_WORDS.issuperset(map(type, item)):
            continue
        parts = parts_of(item)
        if parts is not None:
            stack += [(path + part.suffix, part.item) for part in reversed(parts)]
        if parts is not None or isinstance(item, Tensor) or is_array(item):
            seen[id(item)] = item


def named_tensors(batch: object, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a batch of lists, tuples, mappings and objects, with the expression that reaches it.

    NumPy arrays of numbers count, as tensors over the same memory. Entries of an object that is a mapping as well (a
    tokenizer's encoding, a batch of graphs) get the name by which a step reaches them.

    Example:
        >>> [name for name, _ in named_tensors({"x": torch.zeros(1), "y": [torch.zeros(2)]})]
        ["batch['x']", "batch['y'][0]"]
    """
    names: dict[int, str] = {}
    for place, item in walk(batch, path):
        if isinstance(item, Tensor):
            yield names.get(id(item), place), item
        elif is_array(item):
            if (tensor := _array_as_tensor(item)) is not None:
                yield names.get(id(item), place), tensor
        elif type(item) not in (dict, list, tuple) and callable(getattr(type(item), "keys", None)):
            names |= _names_of_entries(item, place)


def named_numbers(batch: object, path: str = "batch") -> Iterator[tuple[str, list[float]]]:
    """Every number in a batch outside of tensors and arrays, and every list of plain numbers, where one is a float."""
    for place, item in walk(batch, path):
        if type(item) is float:
            yield place, [item]
        elif type(item) is list and float in (kinds := set(map(type, item))) and kinds <= {float, int}:
            yield place, item


def opaque_parts(batch: object, path: str = "batch") -> list[str]:
    """Returns the parts that cannot be looked into, such as iterators and objects made in C, each with its class."""
    return [
        f"{place} ({type(item).__name__})"
        for place, item in walk(batch, path)
        if not isinstance(item, (Tensor, nn.Module, *_WHOLE)) and not is_array(item) and not _is_container(item)
    ]


def _is_container(item: Any) -> bool:
    return isinstance(item, dict | list | tuple | deque | set | frozenset | types.SimpleNamespace) or bool(
        _attributes(item)
    )


def _rebuild(value: Any, change: Callable[[str, Any], Any], path: str, done: dict[int, Any]) -> Any:
    if id(value) in done:
        return done[id(value)]
    changed = change(path, value)
    if changed is not value:
        done[id(value)] = changed
        return changed
    if isinstance(value, weakref.ref):
        return weakref.ref(done[id(value())]) if id(value()) in done else value
    parts = parts_of(value)
    if parts is None:
        return value
    if isinstance(value, tuple):
        copied = tuple.__new__(type(value), [_rebuild(p.item, change, path + p.suffix, done) for p in parts])
        done[id(value)] = copied
        return copied
    copied = done[id(value)] = blank(value)  # before its parts: they may refer back to it
    for part in parts:
        put(copied, part._replace(item=_rebuild(part.item, change, path + part.suffix, done)))
    return copied


def _attributes(value: Any) -> list[Part]:
    """Returns the attributes of an object: those in its ``__dict__``, then those in slots."""
    try:
        found = [Part(f".{name}", name, item) for name, item in object.__getattribute__(value, "__dict__").items()]
    except AttributeError:
        found = []
    for name in slots_of(type(value)):
        try:
            found.append(Part(f".{name}", name, object.__getattribute__(value, name)))
        except AttributeError:  # declared, and never set
            continue
    return found


def _names_of_entries(mapping: Any, path: str) -> dict[int, str]:
    """Returns the names by which the entries of a mapping-like object are reached, by the entries' ids."""
    try:
        return {id(mapping[key]): f"{path}[{key!r}]" for key in mapping.keys()}  # noqa: SIM118
    except Exception:  # an object with keys of its own kind: its attributes are walked all the same
        return {}


def _array_as_tensor(array: Any) -> Tensor | None:
    if array.dtype.kind not in "fc" or array.ndim == 0:
        return None
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError:  # long doubles, foreign byte orders
        return None
