"""Which steps stick out of their neighbourhood."""

from __future__ import annotations

import math
import statistics
from collections import deque

# Spread of log10 norms to a standard deviation, for a normal distribution.
_MAD_TO_SD = 1.4826


class SpikeDetector:
    """Tells when a total norm stands out from those of the records before it.

    A spike is ``log10 norm - median > max(0.6, 6 * 1.4826 * MAD)`` over the last 50 finite records: at least four
    times the typical norm, and six robust standard deviations. Median and MAD do not move for a few outliers, and a
    lasting new level is normal again after 25 records. Nothing is said in the first 10 records, when norms fall fast.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=50)

    def observe(self, norm: float) -> float | None:
        """How many times the typical norm this one is, if it is a spike, else ``None``; not finite is no spike."""
        if not math.isfinite(norm) or norm <= 0.0:
            return None
        value, recent = math.log10(norm), self._recent
        factor = None
        if len(recent) >= 10:
            median = statistics.median(recent)
            spread = statistics.median(abs(x - median) for x in recent)
            if value - median > max(0.6, 6 * _MAD_TO_SD * spread):
                factor = 10 ** (value - median)
        recent.append(value)
        return factor
