"""Names and counts in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 3


def named(layers: Sequence[str]) -> str:
    """The first three names, and how many more there are.

    Example:
        >>> named(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = len(layers) - _SHOWN
    return ", ".join(layers[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def count(number: int, noun: str) -> str:
    """A number with its noun and its verb.

    Example:
        >>> count(1, "module"), count(2, "module")
        ('1 module is', '2 modules are')
    """
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def times(factor: float) -> str:
    """A factor in words; one without end, since the smaller number is zero, is said so.

    Example:
        >>> times(12.3), times(float("inf"))
        ('12.3 times', 'infinitely many times')
    """
    return "infinitely many times" if factor == float("inf") else f"{factor:.3g} times"
