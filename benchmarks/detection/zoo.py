"""All kinds of runs, in two halves."""

from __future__ import annotations

from typing import Literal

from .kind import Fault, Kind
from .made_on import (
    control,
    convolutional,
    dense,
    generative,
    language,
    regression,
    representation,
    tasks_in_one,
    tuning,
)

Half = Literal["made on", "unseen"]

MADE_ON: list[Kind] = [
    kind
    for family in (
        dense,
        convolutional,
        language,
        generative,
        regression,
        representation,
        control,
        tuning,
        tasks_in_one,
    )
    for kind in family.KINDS
]
UNSEEN: list[Kind] = []
HALVES: dict[Half, list[Kind]] = {"made on": MADE_ON, "unseen": UNSEEN}


def find(kind: str, fault: str | None = None) -> tuple[Kind, Fault | None]:
    """The kind of that name, and its fault."""
    (found,) = (k for kinds in HALVES.values() for k in kinds if k.name == kind)
    return found, next((f for f in found.faults if f.name == fault), None)
