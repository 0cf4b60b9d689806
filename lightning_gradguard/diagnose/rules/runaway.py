"""Gradients that grow from record to record."""

from __future__ import annotations

import statistics
from collections import deque

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import has_norms
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.trend import LossTrend
from lightning_gradguard.diagnose.unstable import LargestStep
from lightning_gradguard.record import Finding, StepRecord


class Runaway(Rule):
    """The gradient norm has grown many times over since the run began, and the loss does not fall.

    Growth is measured against the run's own early level: no absolute norm is too large by itself. Of two optimizers the
    loss of one may fall as its gradient grows, below zero by as many times: that of a critic that nothing bounds (its
    slope is what Wasserstein's distance holds at one, Arjovsky et al. 2017).

    Args:
        growth: median norm of the last records over the median of the first, > 1.
        records: how many make up each median, >= 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = Runaway()
        >>> found = [rule.observe(quiet_record(step, total_norm=3.0**step)) for step in range(8)]
        >>> found[0] is None, found[-1].message
        (True, 'the gradient norm grew from 3 to 729 while the loss did not fall.')
    """

    id = "runaway-over-time"

    def __init__(self, growth: float = 30.0, records: int = 3) -> None:
        if not growth > 1:
            raise ValueError(f"growth must be above 1, got {growth}")
        if records < 1:
            raise ValueError(f"records must be at least 1, got {records}")
        self.growth, self.records = growth, records
        self._early: list[float] = []
        self._last: deque[float] = deque(maxlen=records)
        self._trend = LossTrend()
        self._step = LargestStep()

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._trend.add(record)
        self._step.add(record)
        if len(self._early) < self.records:
            self._early.append(record.total_norm)
        self._last.append(record.total_norm)
        early, last = statistics.median(self._early), statistics.median(self._last)
        if not last > self.growth * early or (self._trend.is_falling and not self._has_no_floor(record)):
            return None
        how = "fell without end" if self._trend.is_falling else "did not fall"
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"the gradient norm grew from {early:.3g} to {last:.3g} while the loss {how}.",
            step=record.step,
            layers=record.layers,
            evidence={"early": early, "last": last},
            causes=("the learning rate is too high", "training is unstable without clipping"),
            remedies=(*self._step.tries(record, norm=early), *(() if has_norms(record) else (remedies.NORMALIZE,))),
        )

    def _has_no_floor(self, record: StepRecord) -> bool:
        """Whether, of two optimizers, the loss of this one has grown below zero as much."""
        first, now = self._trend.first, self._trend.now
        if record.num_optimizers != 2 or first is None or now is None:
            return False
        return now < -self.growth * max(1.0, abs(first))
