"""A learning rate that is gone too early."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord

_AT_ZERO = 8  # steps at a rate of exactly zero that are not the end of a run


class RateDecayed(Rule):
    """The learning rate has been below a hundredth of its peak for more than half of the run so far, or is zero.

    Schedules that end with the run are there for its last steps only: a cosine for a fifteenth of it, a line for a
    hundredth.

    Args:
        share: of the peak, in (0, 1).

    Raises:
        ValueError: if ``share`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = RateDecayed()
        >>> found = [rule.observe(quiet_record(s, learning_rates=(0.1 * 0.7**s,) * 6)) for s in range(32)]
        >>> found[25] is None, found[31].evidence["since"]
        (True, 13.0)
    """

    id = "rate-decayed"
    patience = 1  # a schedule has no noise, and the condition itself is one of duration
    needs = ("learning_rates",)

    def __init__(self, share: float = 0.01) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share
        self._peak = 0.0
        self._since: int | None = None
        self._first: int | None = None

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.learning_rates is not None
        rate = max(record.learning_rates, default=0.0)
        self._first = record.step if self._first is None else self._first
        self._peak = max(self._peak, rate)
        if rate >= self.share * self._peak:
            self._since = None
            return None
        self._since = record.step if self._since is None else self._since
        # No schedule that ends with the run stays at zero for long.
        gone = rate == 0 and record.step - self._since >= _AT_ZERO
        if not gone and (record.step - self._first < 2 * (self._since - self._first) or record.step < 2):
            return None
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"the learning rate fell from {self._peak:.2g} to {rate:.2g}, and has been below a hundredth of its "
                f"peak since step {self._since}."
            ),
            step=record.step,
            layers=record.layers,
            evidence={"peak": self._peak, "now": rate, "since": float(self._since)},
            causes=("the schedule counts steps where epochs were meant", "the decay is too fast for the run"),
            remedies=(remedies.SLOWER_DECAY,),
        )
