"""Where the loss is going, from what the records say of it."""

from __future__ import annotations

import math
import statistics
from collections import deque

from lightning_gradguard.record import StepRecord


class LossTrend:
    """Remembers the loss of the first record and of the last few.

    Args:
        window: how many records make up *now*, and how many the time before it; the median of each is compared.
    """

    def __init__(self, window: int = 4) -> None:
        self.window = window
        self.first: float | None = None
        self._last: deque[float] = deque(maxlen=2 * window)

    def add(self, record: StepRecord) -> None:
        """Takes in the loss of a record, if it has a finite one."""
        if record.loss is not None and math.isfinite(record.loss):
            if self.first is None:
                self.first = record.loss
            self._last.append(record.loss)

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
        """Whether it fell by a hundredth from the records before the last to the last ones."""
        if len(self._last) < 2 * self.window:
            return bool(self.fell is not None and self.fell > 0.02)
        earlier = statistics.median(list(self._last)[: self.window])
        now = self.now
        return now is not None and earlier - now > 0.01 * abs(earlier)
