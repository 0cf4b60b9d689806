"""A kind of run that should go well, and the faults that people put into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .recipe import Recipe

Sight = Literal["plain", "subtle", "hidden"]


@dataclass(frozen=True)
class Fault:
    """A mistake somebody made in public.

    Attributes:
        name: what was done, in the words of a user.
        cause: what is wrong, one of ``causes.CAUSES``.
        source: where it was reported: an address, or the fault set.
        change: the mistake, as a change of the recipe.
        sight: whether gradients, activations, updates and losses show it: at a glance (``plain``), to who looks
            closely (``subtle``), or not at all (``hidden``).
    """

    name: str
    cause: str
    source: str
    change: Callable[[Recipe], Recipe]
    sight: Sight = "plain"


@dataclass(frozen=True)
class Kind:
    """A training script that goes well, and faults of it."""

    name: str
    recipe: Recipe
    faults: tuple[Fault, ...] = ()
