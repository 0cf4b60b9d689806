"""Where the loss is going, from what the records say of it."""

from __future__ import annotations

import math
import statistics
from collections import deque

from lightning_gradguard.record import StepRecord

_BEGINNING = 3  # records that make up the first loss


class LossTrend:
    """Remembers the loss of the first records and of the last ones.

    Args:
        window: how many records make up *now*, and how many the time before it; the median of each is compared.
    """

    def __init__(self, window: int = 4) -> None:
        self.window = window
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=2 * window)

    def add(self, record: StepRecord) -> None:
        """Takes in the loss of a record, if it has a finite one."""
        if record.loss is not None and math.isfinite(record.loss):
            if len(self._first) < _BEGINNING:
                self._first.append(record.loss)
            self._last.append(record.loss)

    @property
    def first(self) -> float | None:
        """Median loss of the first records, since that of a single batch is noisy; ``None`` before there are any."""
        return statistics.median(self._first) if self._first else None

    @property
    def now(self) -> float | None:
        """Median loss of the last records; ``None`` before there are any."""
        return statistics.median(list(self._last)[-self.window :]) if self._last else None

    @property
    def fell(self) -> float | None:
        """By which share of the first loss it has fallen since; ``None`` while unknown."""
        if self.first is None or self.now is None or self.first == 0:
            return None
        return (self.first - self.now) / abs(self.first)

    @property
    def is_falling(self) -> bool:
        """Tells whether the value fell by a hundredth from the earlier half of what is remembered to the later half."""
        known = list(self._last)
        half = len(known) // 2
        if half == 0:
            return False
        earlier, later = statistics.median(known[-2 * half : -half]), statistics.median(known[-half:])
        return earlier - later > 0.01 * abs(earlier)
