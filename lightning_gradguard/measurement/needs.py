"""What clipping policies need of the gradients beyond the norm of each: declared once, measured in the one pass."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.units import FoundUnits, Units, Wanted


class HasNeeds(Protocol):
    """Whatever says what it needs, such as a clipping policy."""

    def needs(self, layout: Any) -> Needs:
        """Returns its needs of one layout."""


@dataclass(frozen=True, eq=False)
class Needs:
    """What is to be measured of the gradients of one layout, besides the norm of each.

    A policy says it once, before the first step (:meth:`ClipPolicy.needs
    <lightning_gradguard.clip.base.ClipPolicy.needs>`); from then on :func:`measure
    <lightning_gradguard.measurement.measurement.measure>` finds it in its one pass, for all policies together. Largest
    elements and norms of weights need no word: they are read when somebody asks, and change nothing for the next step.

    Attributes:
        units: for each parameter how it falls into units whose norms are needed, ``None`` for one that is left alone;
            ``None`` altogether where no units are.
        indices: which parameters of the measured layout ``units`` are about; ``None`` for all of them.
        parts: the policies that these needs are put together from, each with its own; see :meth:`of`.

    Example:
        >>> from lightning_gradguard.measurement.units import WHOLE, Units
        >>> rows = Units(dims=(1,))  # of a matrix: each norm is taken over dimension 1
        >>> Needs(units=(rows, WHOLE)).units[0].count((5, 3))
        5
    """

    units: tuple[Units | None, ...] | None = None
    indices: tuple[int, ...] | None = None
    parts: tuple[tuple[HasNeeds, Needs], ...] = ()

    @classmethod
    def of(cls, policies: Iterable[HasNeeds], layout: Any) -> Needs:
        """Returns the needs of several policies over one layout, for whatever holds policies: a chain, say."""
        return cls(parts=tuple((policy, policy.needs(layout)) for policy in policies))

    @classmethod
    def together(cls, needs: Iterable[Needs]) -> Needs:
        """Returns what several such lists of policies need."""
        return cls(parts=tuple(part for each in needs for part in each.parts))

    def within(self, indices: Sequence[int] | None) -> Needs:
        """Returns the same needs as those of a larger layout, in which the parameters have these indices."""
        if indices is None:
            return self
        parts = tuple((policy, own.within(indices)) for policy, own in self.parts)
        return replace(self, indices=tuple(indices), parts=parts)

    @functools.cached_property
    def leaves(self) -> tuple[Needs, ...]:
        """Returns what single policies need of units: each gets an answer of its own, from what is measured once."""
        own = (self,) if self.units is not None and any(self.units) else ()
        return (*own, *(leaf for _, part in self.parts for leaf in part.leaves))

    def leaf_like(self, needs: Needs) -> Needs:
        """Returns the one of the :attr:`leaves` that asks for the same as these needs, or else these."""
        asked = needs.units, needs.indices
        return next((leaf for leaf in self.leaves if (leaf.units, leaf.indices) == asked), needs)

    @functools.cached_property
    def by_policy(self) -> Mapping[int, Needs]:
        """What each policy needs, by its ``id``."""
        known: dict[int, Needs] = {}
        for policy, own in self.parts:
            known |= {id(policy): own, **own.by_policy}
        return known

    @functools.cached_property
    def norms_of_gradients(self) -> Norms:
        """Measures gradients, with the units of all :attr:`leaves` in the same pass."""
        return Norms([Wanted(leaf.units or (), leaf.indices) for leaf in self.leaves])

    @functools.cached_property
    def units_of_copies(self) -> Norms:
        """Measures :attr:`units` alone, of copies of the gradients, say: a pass of its own."""
        return Norms([Wanted(self.units or ())])

    @functools.cached_property
    def units_of_weights(self) -> Norms:
        """Measures :attr:`units` of weights; ``None`` in place of those whose gradients have no units."""
        return Norms([Wanted(self.units or ())])


Found = Mapping[Needs, FoundUnits]

NOTHING = Needs()
