"""Steps that throw the weights away."""

from __future__ import annotations

import math
import statistics

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.settled import SettledRatios, round_factor
from lightning_gradguard.record import Finding, StepRecord

_USUAL = 0.05  # the largest ratio, in the first steps, of runs that train well: measured 0.02 to 0.13
_AIM = 0.02  # at which a run trains well; a rate three times below the best costs little, one three times above it much
_AIM_LATER = 0.005  # where the first step was small: what grew since, momentum and the gradient, is not in it
_ABOVE = 3.0  # times the median that the largest layer's ratio usually is
_RISEN = 2.0  # times the first rate that one is in a warm-up
_LATE = 48  # steps after which steps have become smaller in runs that train well, as weights find their place
_AIM_LATE = 0.002  # where they are then, as a part of what the weights began with
_STAYS = 0.06  # part above which they have not: 0.046 was seen where a loss stood still for a while
_ROW = 2  # records in a row, from then on, that say so
_MOST = 300.0  # to be suggested at once: a first step far out of a narrow valley exaggerates, as an explosion does


class LargeUpdates(Rule):
    """A step changes the weights by a large part of their own size.

    Speaks of the median over layers of the measured ||change|| / ||weights||, without layers that began at
    zero, as adapters and closing layers of residual branches do. What a single step did to the weights stays done, so
    that the finding stands from then on; while the loss falls it is *info*.

    Or steps have not become smaller: after 48 of them they are still above 0.06 of what the weights began with, for two
    records in a row. So it goes where an optimizer begins with small steps, as RAdam does; and beside weights that
    have grown by such steps each is a small part of them.

    The factor is what brings the ratio of the first step to 0.02, since that one is proportional to the rate. Where the
    first step was not too large, training became unstable as momentum and gradient grew, and where the rate has doubled
    since, as in a warm-up, the first step tells little: the factor is what brings the largest ratio to 0.005.

    Args:
        share: ratio that is too much, > 0. The literature calls up to 0.1 healthy, and runs that train well were seen
            at 0.13 in their first steps.
        jump: ratio of a step that replaces the weights, > ``share``.

    Raises:
        ValueError: unless 0 < ``share`` < ``jump``.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = LargeUpdates()
        >>> rule.observe(quiet_record(0, update_ratios=(0.01,) * 6)) is None
        True
        >>> rule.observe(quiet_record(1, update_ratios=(3.0,) * 6)).remedies[0]
        'lower the learning rate by about 300×'
    """

    id = "updates-too-large"
    harmless_if_learning = True
    patience = 2

    def __init__(self, share: float = 0.2, jump: float = 0.5) -> None:
        if not 0 < share < jump:
            raise ValueError(f"share and jump must be positive and in order, got {share} and {jump}")
        self.share, self.jump = share, jump
        self._ratios = SettledRatios()
        self._first: float | None = None
        self._largest = 0.0
        self._rate: float | None = None  # at the first record
        self._warmed_up = False
        self._steps = 0
        self._began: tuple[float | None, ...] | None = None  # norms of the weights at the first record
        self._row = 0  # records in a row of late steps that are too large
        self._late = 0.0  # the largest of these

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        moved = self._ratios.moved(record)
        self._began = record.weight_norms if self._began is None else self._began
        self._take_in_settings(record)
        if moved:
            ratio = statistics.median(moved)
            # Without normalization a step is as large as its gradient: the layer that is thrown furthest counts.
            first = max(ratio, max(moved) / _ABOVE) if record.optimizer_kind == "SGD" else ratio
            self._first = first if self._first is None else self._first
            self._largest = max(self._largest, ratio)
            self._follow(ratio * self._growth(record))
        self._steps += record.num_steps
        if self._largest > self.share:
            ratio, factor = self._largest, self._factor()
            what = f"a step changed the weights of the median layer by {ratio:.3g} times their norm; up to {_USUAL:g}"
        elif self._row >= _ROW:
            ratio, factor = self._late, min(round_factor(self._late / _AIM_LATE), _MOST)
            what = f"steps still change the weights of the median layer by {ratio:.3g} times their first norm; {_AIM:g}"
        else:
            return None
        return Finding(
            rule=self.id,
            severity="critical" if self._largest > self.jump else "warning",
            message=f"{what} is usual. The learning rate is about {factor:g} times too high.",
            step=record.step,
            layers=record.layers,
            evidence={"update_ratio": ratio, "lower_learning_rate_by": factor},
            causes=("the learning rate is too high", "gradients exploded in a single step"),
            remedies=(
                remedies.lower_rate(factor),
                remedies.WARM_UP,
                remedies.clip(clips=record.coefficient is not None),
            ),
        )

    def _follow(self, part: float) -> None:
        """Counts the records in a row whose steps are large although it is late."""
        if self._steps >= _LATE:
            self._row = self._row + 1 if part > _STAYS else 0
            self._late = max(self._late, part) if self._row else 0.0

    def _growth(self, record: StepRecord) -> float:
        """By how much the median layer's weights are larger than at the first record; never below one."""
        pairs = zip(record.weight_norms or (), self._began or (), strict=False)
        grown = [now / first for now, first in pairs if now and first and math.isfinite(now)]
        return max(1.0, statistics.median(grown)) if grown else 1.0

    def _take_in_settings(self, record: StepRecord) -> None:
        if record.learning_rates:
            rate = max(record.learning_rates)
            self._rate = rate if self._rate is None else self._rate
            self._warmed_up = self._warmed_up or rate > _RISEN * self._rate

    def _factor(self) -> float:
        """How many times too high the rate is."""
        first = self._first or 0.0
        by_the_first = first > self.share and not self._warmed_up
        return min(round_factor(first / _AIM if by_the_first else self._largest / _AIM_LATER), _MOST)
