"""All kinds of runs, in two halves."""

from __future__ import annotations

from typing import Literal

from . import made_on, unseen
from .kind import Fault, Kind

Half = Literal["made on", "unseen"]

MADE_ON: list[Kind] = made_on.kinds()
UNSEEN: list[Kind] = unseen.kinds()
HALVES: dict[Half, list[Kind]] = {"made on": MADE_ON, "unseen": UNSEEN}


def find(kind: str, fault: str | None = None) -> tuple[Kind, Fault | None]:
    """The kind of that name, and its fault."""
    (found,) = (k for kinds in HALVES.values() for k in kinds if k.name == kind)
    return found, next((f for f in found.faults if f.name == fault), None)
