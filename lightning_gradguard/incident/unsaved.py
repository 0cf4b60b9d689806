"""What stands where a part of a batch could not be saved, and what stands in for an object of an unknown class."""

from __future__ import annotations

from typing import Any, NoReturn


class UnsavedError(RuntimeError):
    """The step asked for a part of its batch that is not in the bundle; the message names the part."""


class Unsaved:
    """Stands where something was that could not be saved safely; raises as soon as it is used, and says what it was.

    Args:
        path: the expression that reached it, e.g. ``"batch['meta']"``.
        description: its type and the beginning of its ``repr``.
    """

    __slots__ = ("_description", "_path")

    def __init__(self, path: str, description: str) -> None:
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_description", description)

    def __repr__(self) -> str:
        path, description = (object.__getattribute__(self, name) for name in ("_path", "_description"))
        return f"{path} ({description})"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python's own questions, such as whether it can be copied
            raise AttributeError(name)
        _missing(self)


def _missing(self: Unsaved, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnsavedError(f"the step uses {self!r}, which could not be saved with the incident")


for _name in (
    "call", "iter", "next", "len", "getitem", "contains", "bool", "int", "float", "index", "enter", "fspath", "str",
    "format", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "rmatmul", "lt", "gt", "le",
    "ge", "array", "setattr", "setitem",
):  # fmt: skip
    setattr(Unsaved, f"__{_name}__", _missing)


class Standin:
    """An object with the attributes and entries of one whose class is not imported here.

    Args:
        kind: name of that class.
        entries: what it answered to as a mapping; reached by key, and by name like its attributes.

    Example:
        >>> graphs = Standin("chemprop.data:BatchMolGraph", {"V": 1})
        >>> graphs.V, graphs["V"], "V" in graphs
        (1, 1, True)
    """

    def __init__(self, kind: str, entries: dict[Any, Any] | None = None) -> None:
        self.__dict__["_kind"] = kind
        self.__dict__["_entries"] = entries or {}

    def __getattr__(self, name: str) -> Any:
        entries = self.__dict__.get("_entries", {})
        if name in entries:
            return entries[name]
        raise AttributeError(
            f"{name!r} of an object whose class {self.__dict__.get('_kind')} is not imported here: let the module with "
            "the factory import it"
        )

    def __getitem__(self, key: Any) -> Any:
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Any:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> Any:
        """Of its entries."""
        return self._entries.keys()

    def items(self) -> Any:
        """Its entries."""
        return self._entries.items()

    def values(self) -> Any:
        """Its entries' values."""
        return self._entries.values()

    def to(self, *args: Any, **kwargs: Any) -> Standin:
        """Itself: a replay has moved its tensors already."""
        return self
