"""Which clip the norms of a run ask for, and why: from the norms alone, without running a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.hindsight.series import Series
from lightning_gradguard.record import LastWeights, StepRecord

Kind = Literal["none", "spikes", "explosion", "uneven", "layers"]

_LEVEL = 50  # steps whose median is the level of the next one
_SPIKE = 5.0  # times that level
_HARMFUL = 3.0  # ... and times the level of the first quarter: late in a run everything is small beside its own noise
_UNEVEN = 3.0  # times the level ...
_OFTEN = 0.1  # ... so often that it is no exception
_EXPLODES = 5.0  # times the first norm, within ...
_FIRST_STEPS = 20  # ... so many steps, or the first 5 %
_LASTING = 5  # steps whose median is twice the first norm at least
_IMBALANCE = 30.0  # gradient over weight of one layer, beside that of the median layer
_LARGE_STEP = 0.1  # learning rate times gradient over weight: what one step of SGD changes
_FEW = 5  # finite norms from which no rise can be told
_PLAIN = ("SGD", "SGD8bit")  # a step is learning rate times gradient; others normalize it in one way or another


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        kind: what the norms look like.
        policy: in the notation of :func:`~lightning_gradguard.hindsight.notation.read_policy`; ``None`` for no clip.
        reason: why, in a sentence or two with the numbers that it rests on.
    """

    kind: Kind
    policy: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.policy or 'no clipping'}: {self.reason}"


def advise(series: Series, records: Sequence[StepRecord] = ()) -> Advice:
    """Returns which clip a run asks for.

    - *uneven*: a tenth of the steps lies above three times the level: no exception to be caught: a percentile.
    - *explosion*: within the first 20 steps (or 5 %) the norm rises to five times the first one and stays up, or the
      run breaks off: no history can foresee that, a ceiling at the first norms can (at half of them, if it broke off).
      Ordinary norms and then NaN are no explosion: what broke was a batch or the forward pass.
    - *layers*: under SGD a step changes one layer by a tenth of its weights, and
      thirty times as much as the median layer: one norm for all would cut the others: AGC. A layer that is large
      only beside layers whose gradient vanishes is none: what those lack no clip can give.
    - *spikes*: few steps lie above five times the level of the 50 before them: ZClip, with the largest ordinary norm
      as its ceiling.
    - *none*: nothing of this.

    Args:
        series: the norms of one optimizer.
        records: of the same optimizer, for what is known layer by layer.

    Example:
        >>> from lightning_gradguard.hindsight.series import Piece, join
        >>> norms = np.ones(200, dtype=np.float32)
        >>> advise(join([Piece(199, norms)])).kind
        'none'
        >>> norms[[90, 150]] = 40.0
        >>> print(advise(join([Piece(199, norms)])))
        ZClip(max_norm=1): 2 of 200 steps lie above 5 times the level of the steps before them (step 90: 40 times), \
and the others do not: it cuts those and leaves the rest alone. The ceiling is the largest ordinary norm of this run.
    """
    finite = np.isfinite(series.norms)
    norms, steps = series.norms[finite].astype(np.float64), series.steps[finite]
    lost = int((~finite).sum())
    if not len(norms):
        return Advice("none", None, "no step has a finite norm: the forward pass is broken, and no clip can help.")
    levels, usual = _levels(norms), float(np.median(norms[: max(1, len(norms) // 4)]))
    broken = _breaks_off(norms, usual, lost)
    often = float(((norms > _UNEVEN * levels) & (norms > usual)).mean())
    if often >= _OFTEN and len(norms) > 2 * _LEVEL and not broken:
        return _uneven(often)
    found = _explosion(norms, broken=broken or (lost > 0 and len(norms) < _FEW)) or _imbalance(records)
    if found is not None:
        return found
    spikes = np.flatnonzero((norms > _SPIKE * levels) & (norms > _HARMFUL * usual))
    if len(spikes):
        return _spikes(norms, steps, levels, spikes, broken=broken, lost=lost)
    return _none(norms, levels, lost)


def _explosion(norms: NDArray[np.float64], *, broken: bool) -> Advice | None:
    early = norms[: max(_FIRST_STEPS, math.ceil(0.05 * len(norms)))]
    above = np.flatnonzero(early > _EXPLODES * early[0])
    ends = len(norms) <= _FIRST_STEPS and (broken or len(above) > 0)
    lasts = len(above) > 0 and float(np.median(early[above[0] :][:_LASTING])) > 2 * early[0]  # else it is a spike
    if not (lasts or ends):
        return None
    start = float(early[: above[0]].min()) if len(above) else float(early.min())
    grown = f"goes to {early.max() / early[0]:.3g} times it" if len(above) else "is not finite any more"
    reason = (
        f"the norm begins at {start:.3g} and within {len(early)} steps {grown}: an explosion from the first steps, "
        "which no history can foresee. A ceiling where the run begins can"
    )
    # Where the first steps alone were too much, steps of that size are no safe ground.
    ceiling, half = (start / 2, ", half as high since nothing came after it.") if ends else (start, ".")
    return Advice("explosion", f"NormClip({_round(ceiling)})", reason + half)


def _levels(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The level before each step: the median of up to 50 steps before it, infinite while there are less than five."""
    levels = np.full(len(norms), np.inf)
    for index in range(5, min(_LEVEL, len(norms))):
        levels[index] = np.median(norms[:index])
    if len(norms) > _LEVEL:
        windows = np.lib.stride_tricks.sliding_window_view(norms[:-1], _LEVEL)
        parts = np.array_split(windows, max(1, len(windows) // 20_000))
        levels[_LEVEL:] = np.concatenate([np.median(part, axis=1) for part in parts])
    return levels


def _breaks_off(norms: NDArray[np.float64], usual: float, lost: int) -> bool:
    """Whether a run ends far above where it began, or in steps that are not finite."""
    return bool(np.median(norms[-3:]) > _SPIKE * usual) or (lost > 0 and bool(norms[-1] > _SPIKE * usual))


def _spikes(
    norms: NDArray[np.float64],
    steps: NDArray[np.int64],
    levels: NDArray[np.float64],
    spikes: NDArray[np.int64],
    *,
    broken: bool,
    lost: int,
) -> Advice:
    first = int(spikes[0])
    ordinary = norms[:first] if broken else np.delete(norms, spikes)
    times = f"step {int(steps[first]):,}: {norms[first] / levels[first]:.3g} times"
    what = f"{len(spikes):,} of {len(norms):,} steps lie above {_SPIKE:g} times the level of the steps before them"
    then = (
        ", and the run does not come back from the first of them"
        if broken
        else ", and the others do not: it cuts those and leaves the rest alone"
    )
    policy = f"ZClip(max_norm={_round(float(ordinary.max()))})"
    reason = f"{what} ({times}){then}. The ceiling is the largest ordinary norm of this run."
    return Advice("spikes", policy, reason + _of_the_guard(lost))


def _uneven(share: float) -> Advice:
    reason = (
        f"{share:.0%} of the steps lie above {_UNEVEN:g} times the level of the steps before them: uneven by nature, "
        "not by exception. A percentile of the recent norms evens the steps out."
    )
    return Advice("uneven", "AutoClip()", reason)


def _none(norms: NDArray[np.float64], levels: NDArray[np.float64], lost: int) -> Advice:
    known = np.isfinite(levels) & (levels > 0)
    worst = float((norms[known] / levels[known]).max()) if known.any() else 1.0
    reason = (
        f"no step stands out from those before it and above where the run began (at most {worst:.2g} times the level)."
    )
    return Advice("none", None, reason + _of_the_guard(lost))


def _of_the_guard(lost: int) -> str:
    if not lost:
        return ""
    steps = "1 step is" if lost == 1 else f"{lost:,} steps are"
    return f" {steps} not finite: that is the guard's business, on_nonfinite='skip', and no clip's."


def _imbalance(records: Sequence[StepRecord]) -> Advice | None:
    """What the layers say: a step that is large beside the weights of one layer, and not beside those of the others."""
    weights, ratios = LastWeights(), []
    layers: tuple[str, ...] = ()
    rates: tuple[float, ...] | None = None
    for record in records:
        if record.optimizer_kind not in (None, *_PLAIN):
            return None
        filled = weights.fill(record)
        if filled.weight_norms is None or (layers and filled.layers != layers):
            continue
        layers, rates = filled.layers, record.learning_rates or rates
        ratios.append([_ratio(n, w) for n, w in zip(filled.layer_norms, filled.weight_norms, strict=True)])
    if rates is None or len(layers) < 3:  # without learning rates, as in event files, nothing is known of steps
        return None
    typical = np.array([_median(column) for column in zip(*ratios, strict=True)])
    known = typical[np.isfinite(typical)]
    worst = int(np.nanargmax(typical)) if len(known) else 0
    if not len(known) or typical[worst] * rates[worst] < _LARGE_STEP or typical[worst] < _IMBALANCE * np.median(known):
        return None
    reason = (
        f"the gradient of {layers[worst]!r} is {typical[worst]:.2g} times as large as its weights, that of the median "
        f"layer {np.median(known):.2g} times, at a learning rate of {rates[worst]:.2g}: one norm for all would be that "
        "of this layer. AGC bounds each unit by its own weights."
    )
    return Advice("layers", f"AGC(ratio={_round(max(0.01, 4 * float(np.median(known))))})", reason)


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan


def _ratio(norm: float | None, weight: float | None) -> float:
    if norm is None or weight is None or not math.isfinite(norm) or not weight > 0.0:
        return math.nan
    return norm / weight


def _round(value: float) -> str:
    """Two digits: a ceiling is no measurement."""
    return f"{float(f'{value:.2g}'):g}"
