"""What users may pass to our callbacks, checked when they pass it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lightning_gradguard.arguments import check_count
from lightning_gradguard.clipper import check_policy

T = TypeVar("T")


def check_policies(value: object, name: str) -> None:
    """Accepts a policy, or a mapping from optimizer index or parameter-group name to policy or ``None``.

    Raises:
        TypeError: for anything else.
        ValueError: for an empty mapping, or a negative index.
    """
    if not isinstance(value, Mapping):
        check_policy(value, name)
        return
    if not value:
        raise ValueError(f"{name} is an empty mapping: name an optimizer index or a parameter group")
    for key, policy in value.items():
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise TypeError(f"{name}: keys are optimizer indices or parameter-group names, got {key!r}")
        if isinstance(key, int) and key < 0:
            raise ValueError(f"{name}: optimizer indices count from 0, got {key}")
        if policy is not None:
            check_policy(policy, f"{name}[{key!r}]")


def check_all(values: Sequence[T] | None, kind: type[Any], name: str) -> Sequence[T] | None:
    """Accepts ``None`` or a sequence of objects of one kind, and returns it.

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


def check_interval(value: int | None, name: str) -> int | None:
    """Accepts ``None`` or an int of at least 1, and returns it.

    Raises:
        TypeError, ValueError: says what was got.
    """
    if value is not None:
        check_count(value, name)
    return value


def check_choice(value: str, choices: Sequence[str], name: str) -> None:
    """Accepts one of a few words.

    Raises:
        ValueError: lists them.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
