"""What a policy would have done to a run, in the numbers of one row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.hindsight.notation import written
from lightning_gradguard.hindsight.series import Series
from lightning_gradguard.hindsight.trial import Norms, Trial, try_policy

# The first steps of a run are no example for the rest: shares are those of the steps after them.
START = 0.05
_HARDEST = 10
_SHARES = (0.001, 0.01, 0.05, 0.1, 0.5)
# A rise lasts if the level of so many steps after it is so many times that of as many before it.
_WINDOW = 50
_RISE = 3.0
_IMAGINED = 300  # steps
# It has been followed once ten steps in a row are clipped about as hard as before it.
_STEADY = 10
_AS_BEFORE = 0.9


@dataclass(frozen=True)
class Rise:
    """A lasting rise of the norms, in the run or imagined behind its end.

    Attributes:
        index: of its first step in the series; the length of the series for one behind its end.
        factor: level after it over level before.
        step: of the run; ``None`` for an imagined one.
    """

    index: int
    factor: float
    step: int | None = None

    def __str__(self) -> str:
        if self.step is None:
            return f"a rise to {self.factor:g} times the level, behind the end of the run,"
        return f"the rise to {self.factor:.3g} times the level at step {self.step:,}"


@dataclass(frozen=True)
class Outcome:
    """One policy over one run.

    Attributes:
        policy: as a constructor call, without arguments that are as they are by default.
        clipped: share of the finite steps that it would have clipped, after the first 5 %.
        median: coefficient in the median of those, 1 if there are none.
        smallest: coefficient of all steps.
        largest: norm that it would have let through, over all steps: what is left of the norm after clipping.
        hardest: steps of the ten hardest clips, the hardest first.
        recovers: steps until a lasting rise is clipped no harder than the level before; ``None`` for never, as far as
            the steps go.
    """

    policy: str
    clipped: float
    median: float
    smallest: float
    largest: float
    hardest: tuple[int, ...]
    recovers: int | None

    def as_json(self) -> dict[str, Any]:
        """Returns the same as plain values."""
        return {**vars(self), "hardest": list(self.hardest)}


def outcome_of(policy: ClipPolicy, series: Series, rise: Rise) -> Outcome:
    """Returns what a policy would have done.

    Args:
        policy: one that goes by the total norm.
        series: of the run, with at least one finite norm.
        rise: for how long it takes to follow.

    Raises:
        ValueError: if the policy needs more than the total norm.
    """
    num = len(series)
    behind = _imagined(series.norms) if rise.step is None else series.norms[:0]
    whole = try_policy(policy, np.concatenate([series.norms, behind]))
    trial = Trial(policy, whole.norms[:num], whole.thresholds[:num], whole.coefficients[:num])
    finite = np.isfinite(trial.norms)
    steady = finite & (np.arange(num) >= math.ceil(START * num))
    steady = steady if steady.any() else finite
    of_clipped = trial.coefficients[trial.clipped & steady]
    order = np.argsort(trial.coefficients, kind="stable")
    hardest = [int(series.steps[i]) for i in order if trial.clipped[i]][:_HARDEST]
    return Outcome(
        policy=written(policy),
        clipped=float(trial.clipped[steady].mean()),
        median=float(np.median(of_clipped)) if len(of_clipped) else 1.0,
        smallest=float(trial.coefficients[finite].min()),
        largest=float(np.nanmax(trial.applied)),
        hardest=tuple(hardest),
        recovers=_recovers(whole.coefficients, rise.index),
    )


def find_rise(series: Series) -> Rise:
    """Returns the largest lasting rise of a run, of at least three times; an imagined one for a run without.

    Example:
        >>> from lightning_gradguard.hindsight.series import Piece, join
        >>> norms = np.array([1.0] * 100 + [8.0] * 100, dtype=np.float32)
        >>> print(find_rise(join([Piece(199, norms)])))
        the rise to 8 times the level at step 100
    """
    width = min(_WINDOW, len(series) // 4)
    if width >= _STEADY:
        norms = np.where(np.isfinite(series.norms), series.norms, np.nan).astype(np.float64)
        with np.errstate(all="ignore"):
            windows = np.lib.stride_tricks.sliding_window_view(norms, width)
            levels = _medians(windows)
            factors = np.nan_to_num(levels[width:] / levels[:-width], nan=0.0, posinf=0.0)
        place = int(factors.argmax())
        if factors[place] >= _RISE:
            return _sharpened(series, norms, place + width, float(factors[place]), width)
    return Rise(len(series), _RISE)


def _sharpened(series: Series, norms: NDArray[np.float64], index: int, factor: float, width: int) -> Rise:
    """The same rise, at the first step that lies above its middle: medians see it a little early or late."""
    before = float(np.nanmedian(norms[index - width : index]))
    near = np.arange(max(0, index - width // 2), min(len(norms), index + width))
    above = near[norms[near] > before * math.sqrt(factor)]
    index = int(above[0]) if len(above) else index
    return Rise(index, factor, int(series.steps[index]))


def _medians(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians of many windows, a part at a time: a long run would fill the memory."""
    parts = np.array_split(windows, max(1, len(windows) // 20_000))
    with np.errstate(all="ignore"):
        return np.concatenate([np.median(part, axis=1) for part in parts])


def _imagined(norms: Norms) -> Norms:
    """Some steps behind the end of a run: its last ones over and over, three times as large."""
    finite = norms[np.isfinite(norms)][-_WINDOW:]
    return np.resize(finite * np.float32(_RISE), _IMAGINED) if len(finite) else np.zeros(0, np.float32)


def _recovers(coefficients: Norms, at: int) -> int | None:
    if not at or at >= len(coefficients):
        return None
    before = float(np.median(coefficients[max(0, at - _WINDOW) : at]))
    after = coefficients[at:]
    for start in range(len(after) - _STEADY + 1):
        if float(np.median(after[start : start + _STEADY])) >= _AS_BEFORE * before:
            return start
    return None


def thresholds(norms: Norms) -> dict[float, float]:
    """Returns the ceilings of ``NormClip`` that would have clipped some shares of the steps after the first 5 %.

    Between two neighboring norms lies the middle; where a share is less than one step, the ceiling is the largest norm.

    Args:
        norms: of the run.

    Example:
        >>> thresholds(np.arange(1.0, 101.0, dtype=np.float32))[0.1]
        90.5
    """
    ranked = np.sort(_steady(norms).astype(np.float64))
    return {share: _between(ranked, round(share * len(ranked))) for share in _SHARES} if len(ranked) else {}


def _between(ranked: NDArray[np.float64], above: int) -> float:
    last = len(ranked) - above - 1
    return float(ranked[-1] if not above else (ranked[max(last, 0)] + ranked[last + 1]) / 2)


def share_above(norms: Norms, threshold: float) -> float:
    """Returns the share of the finite steps after the first 5 % that lie above a threshold."""
    steady = _steady(norms)
    return float((steady > threshold).mean()) if len(steady) else 0.0


def share_clipped(trial: Trial) -> float:
    """Returns the share of the finite steps after the first 5 % that a policy would have clipped."""
    late = slice(math.ceil(START * len(trial.norms)), None)
    finite = np.isfinite(trial.norms[late])
    return float(trial.clipped[late][finite].mean()) if finite.any() else float(trial.clipped.any())


def _steady(norms: Norms) -> Norms:
    """The finite norms after the first 5 %; all of them if there are no others."""
    late = norms[math.ceil(START * len(norms)) :]
    late = late[np.isfinite(late)]
    return late if len(late) else norms[np.isfinite(norms)]
