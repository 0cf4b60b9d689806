"""Which classes an object of a batch may come back as: those that are imported, and whose code cannot run by itself."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from lightning_gradguard.incident.batch import blank_of

_OF_PYTHON = (OrderedDict, defaultdict, Counter, deque, UserDict, UserList, SimpleNamespace)


def type_name(cls: type) -> str:
    """Returns the name under which :func:`imported` finds a class.

    Example:
        >>> type_name(OrderedDict)
        'collections:OrderedDict'
    """
    return f"{cls.__module__}:{cls.__qualname__}"


def imported(name: str) -> Any:
    """Returns a class by name, from modules that are imported already; ``None`` if there is none."""
    module, _, qualname = str(name).partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and type_name(found) == name else None


def can_be_made(cls: type) -> bool:
    """Tells whether an object of a class may be made with any content: no code of the class runs when it comes or goes.

    Classes of Python's own library are left out, but for plain containers: some of them act on the machine when they
    are used or forgotten (temporary files, processes), whatever they hold.
    """
    is_pythons = cls.__module__.partition(".")[0] in sys.stdlib_module_names
    if (is_pythons and cls not in _OF_PYTHON and cls.__module__ != "__main__") or hasattr(cls, "__del__"):
        return _is_made_when_running(cls)
    try:
        tuple.__new__(cls) if issubclass(cls, tuple) else blank_of(cls)
    except TypeError:  # only C code can make it
        return _is_tensor(cls)
    return True


def made_when_running(bases: Sequence[Any]) -> Any:
    """Returns the class that a library makes of these classes when it first needs it; ``None`` where that is not known.

    PyTorch Geometric makes the class of its batches so; it has no name by which it could be found.
    """
    library = sys.modules.get("torch_geometric.data.batch")
    batch = getattr(library, "Batch", None)
    if batch is None or len(bases) != 2 or bases[0] is not batch or bases[1] is None:
        return None
    known = sys.modules["torch_geometric.data.data"].BaseData
    return type(batch(_base_cls=bases[1])) if issubclass(bases[1], known) else None


def _is_made_when_running(cls: type) -> bool:
    return not hasattr(cls, "__del__") and made_when_running(cls.__bases__) is cls


def _is_tensor(cls: type) -> bool:
    import torch

    return issubclass(cls, torch.Tensor)
