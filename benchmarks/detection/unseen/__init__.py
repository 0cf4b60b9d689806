"""Kinds of runs that no rule was ever looked at with: their figures are the ones to go by.

Whoever makes or changes a rule keeps away from here. A kind that was looked at moves to ``made_on``, and a new one
takes its place.
"""

from ..kind import Kind
from . import (
    answers,
    chances,
    codebooks,
    estimates,
    forecasts,
    geometry,
    hands,
    lists,
    neighbours,
    operators,
    orders,
    prices,
    replayed,
    rings,
    sequences_in_out,
    small_batches,
    steered,
    towers,
    uncertain,
    views,
    waves,
)

_FAMILIES = (
    *(towers, waves, lists, uncertain, steered, operators, answers, hands, forecasts, neighbours, codebooks),
    *(small_batches, replayed, sequences_in_out, geometry, estimates, rings, prices),
    *(orders, chances, views),
)


def kinds() -> list[Kind]:
    return [kind for family in _FAMILIES for kind in family.KINDS]
