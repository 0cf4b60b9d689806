"""Kinds of runs that no rule was ever looked at with: their figures are the ones to go by.

Whoever makes or changes a rule keeps away from here. A kind that was looked at moves to ``made_on``, and a new one
takes its place.
"""

from ..kind import Kind
from . import (
    adapting,
    control,
    density,
    equations,
    graphs,
    latents,
    optimizers,
    pairs,
    patches,
    series,
    signals,
    vision,
    words,
)

_FAMILIES = (
    patches,
    vision,
    words,
    signals,
    latents,
    density,
    pairs,
    graphs,
    equations,
    series,
    control,
    adapting,
    optimizers,
)


def kinds() -> list[Kind]:
    return [kind for family in _FAMILIES for kind in family.KINDS]
