"""What constructors check of their arguments: a number, a word, a list; each returns what it was given, in its type.

Two families, for two kinds of message. What a policy takes is given with advice (``name`` first, ``do`` last: "... must
be greater than 0, got -1.0; give the largest norm a step may have"); what everything else takes is named only
(``check_...``, the value first). A message says the argument, what was got, and what it may be.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

By = Literal["norm", "value"]
T = TypeVar("T")


# Numbers


def positive(name: str, value: Any, do: str) -> float:
    """Returns a number > 0, infinity included, as a float.

    Args:
        name: the argument's name, for the message.
        value: what the user gave.
        do: what to do instead, for the message.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is NaN, zero or negative.

    Example:
        >>> positive("max_norm", -1, "give the largest norm a step may have")
        Traceback (most recent call last):
        ValueError: max_norm must be greater than 0, got -1; give the largest norm a step may have
    """
    number = _number(name, value, do)
    if not number > 0.0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}; {do}")
    return number


def ceiling(value: Any) -> float | None:
    """Returns the hard limit beside an adaptive threshold: > 0, or ``None`` for none."""
    if value is None:
        return None
    return positive("max_norm", value, "give the largest norm a step may have, or None for no ceiling")


def between(name: str, value: Any, low: float, high: float, do: str, *, open_ends: bool = False) -> float:
    """Returns a number in [low, high], or in (low, high) with ``open_ends``.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is NaN or outside.
    """
    number = _number(name, value, do)
    inside = low < number < high if open_ends else low <= number <= high
    if not inside:
        brackets = f"({low:g}, {high:g})" if open_ends else f"[{low:g}, {high:g}]"
        raise ValueError(f"{name} must be in {brackets}, got {value!r}; {do}")
    return number


def whole(name: str, value: Any, least: int, do: str) -> int:
    """Returns a whole number of at least ``least``.

    Raises:
        TypeError: if it is no int.
        ValueError: if it is smaller.
    """
    if not _is_int(value):
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__}); {do}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}; {do}")
    return int(value)


def check_count(value: object, name: str) -> int:
    """Returns an int of at least 1.

    Raises:
        ValueError, TypeError: says what was got.

    Example:
        >>> check_count(0, "every_n_steps")
        Traceback (most recent call last):
        ValueError: every_n_steps must be at least 1, got 0
    """
    if not isinstance(value, int) or not _is_int(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def check_interval(value: int | None, name: str) -> int | None:
    """Returns ``None``, or an int of at least 1.

    Raises:
        TypeError, ValueError: says what was got.
    """
    return None if value is None else check_count(value, name)


# Words


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns one of a few words.

    Raises:
        ValueError: if it is none of them.
    """
    return _choice(name, value, choices, " or ".join(map(repr, choices)))


def check_choice(value: str, choices: Sequence[str], name: str) -> str:
    """Returns one of several words.

    Raises:
        ValueError: lists them.
    """
    return _choice(name, value, choices, f"one of {', '.join(map(repr, choices))}")


def quantity(value: Any) -> By:
    """Returns what an adaptive policy follows: ``"norm"`` or ``"value"``."""
    return "norm" if one_of("by", value, ("norm", "value")) == "norm" else "value"


# Lists


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Returns shell patterns for names of parameters; ``None`` gives none.

    Raises:
        TypeError: if it is no list of strings; a single string is no list.
    """
    if value is None:
        return ()
    if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{name} must be a list of patterns such as ['head.*'], got {value!r}")
    return tuple(value)


def check_all(values: Sequence[T] | None, kind: type[Any], name: str) -> Sequence[T] | None:
    """Returns ``None``, or a sequence of objects of one kind.

    Raises:
        TypeError: says what was got; with a hint where a class was passed for an instance.
    """
    if values is None:
        return None
    if isinstance(values, (kind, str)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list of {kind.__name__}, got {values!r}")
    for value in values:
        if isinstance(value, type):
            raise TypeError(
                f"{name} must hold {kind.__name__} objects, got the class {value.__name__}: write {value.__name__}(...)"
            )
        if not isinstance(value, kind):
            raise TypeError(f"{name} must hold {kind.__name__} objects, got {value!r}")
    return values


def _number(name: str, value: Any, do: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}); {do}")
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan; {do}")
    return float(value)


def check_switch(value: bool, name: str) -> bool:
    """Returns a switch as it is.

    Raises:
        TypeError: if it is neither ``True`` nor ``False``.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # True is an int to Python


def _choice(name: str, value: Any, choices: Sequence[str], which: str) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be {which}, got {value!r}")
    return str(value)


def warn_without_effect(owner: str, because: str, given: Mapping[str, tuple[Any, Any]]) -> None:
    """Warns of settings that do nothing beside another one, if any of them was set.

    Args:
        owner: the class whose arguments they are.
        because: the setting that keeps them from having an effect.
        given: by name of the argument, what was given and what it is by default.
    """
    idle = [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
    if idle:
        have = "has" if len(idle) == 1 else "have"
        warnings.warn(f"{owner}: with {because}, {' and '.join(idle)} {have} no effect", stacklevel=4)


def show_arguments(value: object) -> str:
    """An object as its constructor call, with each argument that it keeps under its name: for ``__repr__``.

    Example:
        >>> class Clip:
        ...     def __init__(self, norm: float, by: str = "norm") -> None:
        ...         self.norm, self.by = norm, by
        >>> show_arguments(Clip(1.0))
        "Clip(norm=1.0, by='norm')"
    """
    kept = [name for name in inspect.signature(type(value)).parameters if hasattr(value, name)]
    return f"{type(value).__name__}({', '.join(f'{name}={getattr(value, name)!r}' for name in kept)})"
