"""Sick is what ends worse than its healthy twin, by the metric, over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WITHIN = 0.1  # of the twin's progress: what is as good as the twin


@dataclass(frozen=True)
class Twin:
    """How the healthy runs of a kind went."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def learns(self) -> bool:
        """Whether every run ended clearly better than where they began."""
        start = statistics.median(self.before)
        return all(math.isfinite(a) and a < start - 0.05 * abs(start) for a in self.after)

    def gap(self, after: float) -> float:
        """How far behind the twins a run ended: 0 like them, 1 as if nothing had been learnt."""
        best, start = statistics.median(self.after), statistics.median(self.before)
        if not math.isfinite(after):
            return math.inf
        return (after - best) / max(start - best, 1e-12)

    def is_sick(self, after: Sequence[float]) -> bool:
        """Whether runs end worse: a tenth of the progress in the median, and most beyond the worst twin."""
        worse = sum(not a <= max(self.after) for a in after)
        return self.gap(statistics.median(after)) > WITHIN and 3 * worse >= 2 * len(after)
