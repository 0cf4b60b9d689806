"""What constructors check alike."""

from __future__ import annotations


def check_count(value: object, name: str) -> None:
    """Refuses what is not an int of at least 1.

    Raises:
        ValueError, TypeError: says what was got.

    Example:
        >>> check_count(0, "every_n_steps")
        Traceback (most recent call last):
        ValueError: every_n_steps must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
