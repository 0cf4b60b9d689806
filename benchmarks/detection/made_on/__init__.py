"""Kinds of runs that rules are made on: look at them as much as you like."""

from ..kind import Kind
from . import (
    adversaries,
    autoencoders,
    control,
    convolutional,
    dense,
    pairs,
    recurrent,
    regression,
    sets,
    tables,
    tasks_in_one,
    transformers,
    tuning,
)

_FAMILIES = (
    dense,
    tables,
    convolutional,
    transformers,
    recurrent,
    autoencoders,
    adversaries,
    regression,
    pairs,
    sets,
    control,
    tuning,
    tasks_in_one,
)


def kinds() -> list[Kind]:
    return [kind for family in _FAMILIES for kind in family.KINDS]
