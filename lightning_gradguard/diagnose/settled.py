"""Update-to-weight ratios that mean something."""

from __future__ import annotations

import math
import statistics

from lightning_gradguard.record import StepRecord

_ENTRY = 0.5  # size of an embedding's entries below which it has not grown yet: torch begins them at one


class SettledRatios:
    """Reads measured update-to-weight ratios, without layers that began at zero.

    Any step is large beside zero: adapters, closing layers of residual branches and lone biases would look as if the
    learning rate were too high. The rows of an embedding often begin near zero as well, and grow into their place:
    their change is measured against entries of at least a half.
    """

    def __init__(self) -> None:
        self._from_zero: set[str] = set()

    def median(self, record: StepRecord) -> float | None:
        """Median over the layers that moved; ``None`` if the record has no such ratio."""
        moved = self.moved(record)
        return statistics.median(moved) if moved else None

    def moved(self, record: StepRecord) -> list[float]:
        """The ratio of each layer that moved."""
        ratios = record.update_ratios or ()
        weights = record.weight_norms or (None,) * len(ratios)
        for layer, ratio, weight in zip(record.layers, ratios, weights, strict=False):
            if weight == 0 or (ratio == math.inf and weight is not None and math.isfinite(weight)):
                self._from_zero.add(layer)
        return [
            ratio * _beside(record, i)
            for i, (layer, ratio) in enumerate(zip(record.layers, ratios, strict=False))
            if ratio is not None and ratio > 0 and layer not in self._from_zero
        ]


def _beside(record: StepRecord, i: int) -> float:
    """What a ratio of this layer counts: less than one for an embedding whose entries are near zero."""
    kinds, sizes, weights = record.layer_kinds, record.layer_sizes, record.weight_norms
    if not kinds or "Embedding" not in kinds[i] or not sizes or not weights or weights[i] is None:
        return 1.0
    return min(1.0, (weights[i] or 0.0) / (_ENTRY * max(sizes[i], 1) ** 0.5))


def round_factor(factor: float) -> float:
    """Returns the nearest of 1, 3, 10, 30 …: an estimate should not look more exact than it is."""
    if not math.isfinite(factor):
        return factor
    half_decades = round(2 * math.log10(factor))
    return float(f"{10 ** (half_decades / 2):.0e}")
