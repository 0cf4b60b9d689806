"""A clipping threshold that sets the learning rate."""

from __future__ import annotations

import statistics
from collections import deque

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.settled import SettledRatios
from lightning_gradguard.record import Finding, StepRecord

_FAR = 0.1  # update-to-weight ratio of a layer from which no threshold keeps it from moving
_STANDS_STILL = 0.1  # of the gradient that is left, in a run whose loss does not fall


class ClippingAlways(Rule):
    """Nearly every step is clipped, and to a small part of its gradient, by a policy or by the Trainer itself.

    Being clipped often is no fault: AutoClip at the tenth percentile clips nine steps in ten, by little. Here the
    threshold is so far below the usual norm that it, not the learning rate, decides how far a step goes. While the loss
    stands still a tenth of the gradient is little enough. Where a layer moves by a tenth of its size all the same,
    steps are not held back.

    Args:
        rate: share of the run's steps that were clipped, in (0, 1].
        coefficient: what is left of the gradient, median over records, in (0, 1).

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = ClippingAlways()
        >>> rule.observe(quiet_record(0, clip_outside=1.0, total_norm=0.5)) is None
        True
        >>> rule = ClippingAlways()
        >>> rule.observe(quiet_record(0, clip_outside=1e-3, total_norm=0.5)).message
        '100% of the steps were clipped, to 0.002 of the gradient: the norm is usually 0.5, far above the threshold.'
    """

    id = "clipping-always"
    harmless_if_learning = True

    def __init__(self, rate: float = 0.95, coefficient: float = 0.01) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        if not 0 < coefficient < 1:
            raise ValueError(f"coefficient must lie between 0 and 1, got {coefficient}")
        self.rate, self.coefficient = rate, coefficient
        self._progress = Progress()
        self._ratios = SettledRatios()
        self._largest = 0.0
        self._left: deque[float] = deque(maxlen=9)
        self._norms: deque[float] = deque(maxlen=9)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._progress.add(record)
        if record.dry_run:
            return None  # nothing was clipped
        if record.coefficient is not None:
            self._left.append(record.coefficient)
        elif record.clip_outside is not None and record.total_norm > 0:
            self._left.append(min(1.0, record.clip_outside / record.total_norm))
        else:
            return None
        self._norms.append(record.total_norm)
        left, usual = statistics.median(self._left), statistics.median(self._norms)
        if record.coefficient is None:
            rate = sum(value < 1 for value in self._left) / len(self._left)
        else:
            rate = record.clip_rate or 0.0
        limit = _STANDS_STILL if self._progress.state == "stalls" else self.coefficient
        self._largest = max(self._ratios.moved(record), default=self._largest)
        if rate < self.rate or left > max(limit, self.coefficient) or self._largest > _FAR:
            return None
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"{rate:.0%} of the steps were clipped, to {left:.2g} of the gradient: the norm is usually "
                f"{usual:.3g}, far above the threshold."
            ),
            step=record.step,
            layers=record.layers,
            evidence={"clip_rate": rate, "coefficient": left, "usual_norm": usual},
            causes=("the clipping threshold is far below the usual gradient norm", "gradients have grown since"),
            remedies=(remedies.raise_ceiling(usual),),
        )
