"""Whether training suffers: what the losses of the records say of it, noise taken into account."""

from __future__ import annotations

import math
import statistics
from typing import Literal

from lightning_gradguard.record import StepRecord

_BEGINNING = 3  # steps that make up the first loss
_MIN_STEPS = 24  # before them a loss that stays where it is says nothing
_BROKEN = 3  # records in a row that are not finite, from which a run is broken
_MIN_FALL = 8  # and before these nor does one that falls
_SIGMA = 3.0  # how far beyond the noise a change must be
_SHARE = 0.02  # of the first loss by which it must fall to be called falling
_RISE = 1.5  # times its size to be called rising
_DOWN = 0.1  # of what it rose by which it must have come down again to be called falling
_CALM = 2.0  # times the first gradient up to which a loss that rose once is not called unstable
_LEAP = 4.0  # times its size to be called so before the noise is known

_SAME = 1e-3  # by which the loss may differ from what a loss function gave, to be that
_PATIENT = 64  # steps after which a loss still above that has learned nothing, however it moves: it only came down
_BETTER = 0.95  # of the best constant prediction's loss: what has learned anything is below

State = Literal["unknown", "learns", "stalls", "rises"]


class Progress:
    """Follows the mean loss of one optimizer's records from the first steps on.

    The loss *now* is the mean over the last records that make up at least an eighth of the run, so that it settles as
    the run goes on; its noise is the standard deviation from step to step. What is said:

    - ``"learns"``: after 8 steps it fell by a fiftieth of its first size and by three standard errors, and has not come
      back;
    - ``"rises"``: it is at least half above its first size, or above its best by half of what it ever gained, and by
      three standard errors, and is not on its way down from there: targets that move lift a loss once, as the returns
      of a policy do; or it is not finite;
    - ``"stalls"``: neither, or it has only come down to what the best constant prediction would cost, after 24
      steps, or after 64 where it still moves;
    - ``"unknown"`` before that, and while the learning rate is still being warmed up.

    Example:
        >>> progress = Progress()
        >>> progress.state
        'unknown'
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._recent: list[tuple[float, int]] = []  # mean loss and steps of the last records
        self._steps = 0
        self._best = math.inf
        self._peak = -math.inf  # the highest loss now since it was at its best
        self._noise: list[float] = []
        self._norms: list[float] = []  # of the gradient, at the first three records and the last three
        self._rate = 0.0
        self._warming = False
        self._baselines: list[float] = []  # what the best constant prediction would have cost
        self._before = math.nan  # the loss now, one record ago
        self._broken = 0  # records in a row without a finite loss or gradient

    def add(self, record: StepRecord) -> None:
        """Takes in one record."""
        finite = record.loss is not None and math.isfinite(record.loss)
        bad = record.verdict in ("skipped", "nonfinite", "rolled_back") or (record.loss is not None and not finite)
        self._broken = self._broken + 1 if bad else 0
        if record.learning_rates:
            rate = max(record.learning_rates)
            self._warming, self._rate = rate > 1.02 * self._rate and self._steps > 0, rate
        if not finite or record.loss is None:
            return
        if record.num_steps == 1 and record.losses is not None:
            same = [
                x for x in record.losses if x.value is not None and abs(x.value - record.loss) < _SAME * abs(x.value)
            ]
            if same and same[0].baseline is not None and math.isfinite(same[0].baseline):
                self._baselines = [*self._baselines[-7:], same[0].baseline]
        self._before = self.now
        if math.isfinite(record.total_norm):
            self._norms = [*self._norms[:3], *self._norms[3:][-2:], record.total_norm]
        num = max(1, record.num_steps - record.num_nonfinite)
        if len(self._first) < _BEGINNING:
            self._first.append(record.loss)
        self._steps += num
        self._recent.append((record.loss, num))
        while len(self._recent) > 2 and sum(n for _, n in self._recent[1:]) >= max(4, self._steps // 8):
            self._recent.pop(0)
        if record.loss_std is not None and math.isfinite(record.loss_std):
            self._noise = [*self._noise[-4:], record.loss_std]
        if len(self._first) == _BEGINNING:
            now = self.now
            self._peak = now if now < self._best else max(self._peak, now)
            self._best = min(self._best, now)

    @property
    def first(self) -> float:
        """Mean loss of the first records; NaN before there are any."""
        return statistics.fmean(self._first) if self._first else math.nan

    @property
    def now(self) -> float:
        """Mean loss of the last records; NaN before there are any."""
        total = sum(n for _, n in self._recent)
        return sum(loss * n for loss, n in self._recent) / total if total else math.nan

    @property
    def best(self) -> float:
        """The lowest that the loss *now* ever was; infinite before the first records are in."""
        return self._best

    @property
    def steps(self) -> int:
        """How many steps with a finite loss were seen."""
        return self._steps

    @property
    def has_learned_nothing(self) -> bool:
        """Whether the loss is after 64 steps still what the best constant prediction would cost, or more."""
        return self._steps >= _PATIENT and self._learned_nothing()

    @property
    def is_broken(self) -> bool:
        """Whether the last three records were all not finite."""
        return self._broken >= _BROKEN

    @property
    def state(self) -> State:
        """What the losses say, see the class."""
        if self.is_broken:
            return "rises"
        if self._steps < 2:
            return "unknown"
        first, now = self.first, self.now
        size = abs(first)
        noise = self._error()
        if now - first > (_LEAP - 1) * size + 3 * noise or (
            self._steps >= 8 and now - first > (_RISE - 1) * size + _SIGMA * noise
        ):
            return "rises" if not self._comes_down() else "unknown"
        gained = first - self._best
        if self._steps >= _MIN_STEPS and gained > _SHARE * size and now - self._best > 0.5 * gained + _SIGMA * noise:
            return "rises" if not self._comes_down() else "unknown"
        if self._learned_nothing():
            return "stalls" if self._steps >= _MIN_STEPS and not self._warming else "unknown"
        if self._steps >= _MIN_FALL and first - now > max(_SHARE * size, _SIGMA * noise):
            return "learns"
        return "stalls" if self._steps >= _MIN_STEPS and not self._warming else "unknown"

    def _comes_down(self) -> bool:
        """Whether it has been falling since it was highest, by more than its noise or with no larger a gradient."""
        rose = self._peak - min(self.first, self._best)
        fell = self._peak - self.now
        if self.now > self._before:
            return False
        calm = bool(self._norms) and statistics.median(self._norms[-3:]) < _CALM * statistics.median(self._norms[:3])
        return fell > (_DOWN / 2 * rose if calm else max(_DOWN * rose, _SIGMA * self._error_of_now()))

    def _error_of_now(self) -> float:
        """Standard error of the present loss."""
        spread = self._noise[-1] if self._noise else 0.0
        return spread / math.sqrt(max(1, sum(n for _, n in self._recent)))

    def _learned_nothing(self) -> bool:
        """Whether the loss lies where the best constant prediction would, or higher, and does not move on."""
        if not self._baselines:
            return False
        baseline, now = statistics.fmean(self._baselines), self.now
        moves = self._steps < _PATIENT and self._before - now > max(_SHARE / 2 * abs(now), self._error())
        return baseline > 0 and now > _BETTER * baseline and not moves

    def _error(self) -> float:
        """Standard error of the difference between the first loss and the present one."""
        spread = statistics.median(self._noise) if self._noise else 0.0
        if not self._noise and len(self._first) > 1:
            spread = statistics.stdev(self._first)
        total = max(1, sum(n for _, n in self._recent))
        return spread * math.sqrt(1 / max(1, len(self._first)) + 1 / total)
