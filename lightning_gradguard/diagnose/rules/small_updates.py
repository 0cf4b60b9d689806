"""Steps that do not move the weights."""

from __future__ import annotations

import math
import statistics

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import gradient_profile
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.settled import SettledRatios, round_factor
from lightning_gradguard.diagnose.trend import LossTrend
from lightning_gradguard.record import Finding, StepRecord

_GOOD = 0.02  # the largest median over layers of runs that train well: measured 0.004 to 0.13
_BEGINS_LARGE = ("Adagrad", "RMSprop")  # their first step is ten times as large as those that follow, or more
_AT_FIRST = 3.0  # times the share that these may reach while they move nothing
_NEVER = 5e-3  # a quarter of the usual median that no layer at all ever reached
_MORE = 10.0  # times as large as usual: such a first step, or one of a single layer

_EPS = 1e-8  # what Adam and its kin add to the root of the mean square gradient: one far below it moves nothing
_WITH_EPS = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")
_ROOM = 1e-3  # root mean square of a gradient beside which it is nothing

_LONG = 10.0  # times the steps so far that a warm-up may still have to go before it is called too slow
_MIN_STEPS = 32  # before them a warm-up has hardly begun
_SLOPED = 2.0  # powers of ten that the gradient changes by over depth: then that is what keeps layers from moving
_TINY = 1e-2  # of what a loss function gave that is back-propagated, from which that is no weight but a mistake
_TINY_LOSS = "the loss is multiplied by a tiny factor"
_ONCE = 10.0  # times the share that no step ever reached: Adagrad's first steps are larger than all others


class SmallUpdates(Rule):
    """No layer is changed by more than a tiny part of its size in a step, and the loss stays where it is.

    Speaks of the largest ||change|| / ||weights|| of any layer over the last six that were measured, of a run in which
    it never was ten times as much: the end of a decay and one layer without gradient are no cause, and while it rises
    as in a warm-up judgement waits, unless at that pace it had ten times as long to go. And of a run whose loss is
    after 64 steps still what the best constant prediction would cost, if no layer ever moved by a quarter of what the
    median layer of a run that trains well does: plain SGD at a rate that was meant for Adam moves the last layer alone.
    Layers that began at zero, as half of an adapter does, are left out: any step is large beside zero.

    The factor brings the largest median over layers to 0.02, and to ten times that in two cases: Adagrad divides by the
    root of all squares so far and RMSprop by that of a mean that begins at zero, so that their first step is far above
    all others; and a model of a single layer is convex in its weights, which begin small and grow into their place.
    Where a loss function's value was multiplied by a tiny factor, that factor is what the finding names.

    Args:
        share: ratio that no layer exceeds, > 0.
        min_progress: share of the first loss by which it must have fallen to be well, >= 0.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> SmallUpdates().observe(quiet_record(0, update_ratios=(0.01,) * 6)) is None
        True
        >>> SmallUpdates().observe(quiet_record(0, update_ratios=(1e-6,) * 6)).remedies[0]
        'raise the learning rate by about 30000×'
    """

    id = "updates-too-small"
    patience = 4

    def __init__(self, share: float = 3e-4, min_progress: float = 0.05) -> None:
        if not share > 0:
            raise ValueError(f"share must be positive, got {share}")
        if not min_progress >= 0:
            raise ValueError(f"min_progress must not be negative, got {min_progress}")
        self.share, self.min_progress = share, min_progress
        self._trend = LossTrend()
        self._ratios = SettledRatios()
        self._progress = Progress()
        self._recent: list[float] = []
        self._ever = 0.0
        self._median = 0.0
        self._last: float | None = None
        self._rising = False
        self._less: float | None = None  # what tiny part of a loss function's value is back-propagated

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._trend.add(record)
        self._take_in(record)
        self._progress.add(record)
        fell = self._trend.fell
        largest = max(self._recent, default=0.0)
        limit = self.share * (_AT_FIRST if record.optimizer_kind in _BEGINS_LARGE else 1.0)
        small = 0 < largest < limit and self._ever < _ONCE * self.share
        still = not self._rising and (fell is None or fell <= self.min_progress)
        if not (small and still) and not (largest and self._has_learned_nothing(record)):
            return None
        what, causes, tries, by = self._way_out(record, largest)
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"no step has changed any layer by more than {largest:.2g} of its norm; runs that train well "
                f"reach {_GOOD:g} in the median layer. {what}"
            ),
            step=record.step,
            layers=record.layers,
            evidence={"update_ratio": largest, **by},
            causes=causes,
            remedies=(tries,),
        )

    def _has_learned_nothing(self, record: StepRecord) -> bool:
        """Whether the loss is still that of a constant, no layer ever moved as the median one does, and all alike."""
        line = gradient_profile(record).line
        level = line is None or not line.is_certain or abs(line.decades) < _SLOPED
        return self._ever < _NEVER and level and self._progress.has_learned_nothing and not self._rising

    def _way_out(self, record: StepRecord, largest: float) -> tuple[str, tuple[str, ...], str, dict[str, float]]:
        """What is wrong, its causes, what to try, and by how much."""
        faint = _largest_gradient(record)
        drowns = record.optimizer_kind in _WITH_EPS and 0 < faint < 0.1 * _EPS
        less = self._less
        if less is not None and (drowns or record.optimizer_kind == "SGD"):
            more = 1 / less
            what = f"What is back-propagated is {less:.1g} of what the loss function gave."
            return what, (_TINY_LOSS,), remedies.larger_loss(more, "a tiny factor on it"), {"multiply_loss_by": more}
        if drowns:
            more = round_factor(_ROOM / faint)
            what = f"The gradient has a root mean square of {faint:.1g} at most, and drowns in the optimizer's eps."
            tries = remedies.larger_loss(more, "its gradient is below the optimizer's eps")
            return what, (_TINY_LOSS, "a tiny input or weight"), tries, {"multiply_loss_by": more}
        begins_large = record.optimizer_kind in _BEGINS_LARGE or len(record.layers) == 1
        factor = round_factor(_GOOD * (_MORE if begins_large else 1.0) / (self._median or largest))
        causes = ("the learning rate is too low", "a clipping threshold far below the usual norm")
        what = f"The learning rate is about {factor:g} times too low."
        return what, causes, remedies.raise_rate(factor), {"raise_learning_rate_by": factor}

    def _take_in(self, record: StepRecord) -> None:
        self._less = self._less or _factor_on_the_loss(record)
        ratios = [r for r in self._ratios.moved(record) if math.isfinite(r)]
        if ratios:
            now = max(ratios)
            self._median = max(self._median, statistics.median(ratios))
            # A linear warm-up is at `share` after share / now times the steps so far.
            soon = now * _LONG > self.share or record.step < _MIN_STEPS
            self._rising = self._last is not None and now > 1.5 * self._last and soon
            self._last = now
            self._recent = [*self._recent[-5:], now]
            self._ever = max(self._ever, now)


def _largest_gradient(record: StepRecord) -> float:
    """The largest root mean square gradient of any layer; 0 where sizes are unknown."""
    known = zip(record.max_layer_norms, record.layer_sizes or (), strict=False)
    return max((norm / size**0.5 for norm, size in known if norm is not None and size), default=0.0)


def _factor_on_the_loss(record: StepRecord) -> float | None:
    """What a tiny part of the one loss function's value was back-propagated; ``None`` if it was not."""
    given = [loss.value for loss in record.losses or () if loss.value]
    if record.num_steps != 1 or record.loss is None or len(given) != 1 or not 0 < record.loss < _TINY * given[0]:
        return None
    return record.loss / given[0]
