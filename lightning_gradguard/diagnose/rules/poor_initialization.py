"""A start from which training hardly gets away."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import DEEP, has_norms, missing_norms
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import ActivationStats, Finding, StepRecord

_DEAD = 0.9  # share of silent units that lets nothing through
_FAR = 10.0  # times the spread from which it is grave: torch's own start fades by twenty in five layers, and learns
_SAME = 1e-4  # of its size by which an output must differ between samples
_STILL = 3e-4  # update-to-weight ratio below which nothing trains
_NORMALIZING = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")
_HIDDEN = ("Linear", "Conv")


class PoorInitialization(Rule):
    """At the first look the forward signal fades or blows up from layer to layer, or weights are all zero.

    Four ways to start badly:

    - a layer's weights are all zero *and* so is its gradient: it cannot leave zero. (A zero-initialized branch or
      adapter gets a gradient at once, and is left alone.)
    - the output of a hidden layer is below ``low`` or above ``high`` in root mean square, where an initialization that
      fits the activation keeps it near one.
    - from the first hidden layer to the last it changes by a factor of more than ``spread``.
    - the last hidden output is the same for all samples, to a ten-thousandth, while the first one is not: biases
      alone are left of the signal.

    Args:
        low: smallest root mean square of a hidden output that is not remarked upon, > 0.
        high: largest, > ``low``.
        spread: largest factor between the first and the last hidden output, > 1. Up to five was seen in residual nets
            that train well.

    Raises:
        ValueError: unless 0 < ``low`` < ``high`` and ``spread`` > 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> fades = tuple(quiet_activation(f"l{i}", rms=0.1**i) for i in range(6))
        >>> PoorInitialization().observe(quiet_record(0, activations=tuple(quiet_activation(n) for n in "abc"))) is None
        True
        >>> PoorInitialization().observe(quiet_record(0, activations=fades)).message
        'the forward signal fades over depth: root mean square 1 after l0, 0.0001 after l4.'
    """

    id = "poor-initialization"
    harmless_if_learning = True
    patience = 2
    needs = ("activations",)

    def __init__(self, low: float = 1e-3, high: float = 100.0, spread: float = 20.0) -> None:
        if not 0 < low < high:
            raise ValueError(f"low and high must be positive and in order, got {low} and {high}")
        if not spread > 1:
            raise ValueError(f"spread must be above 1, got {spread}")
        self.low, self.high, self.spread = low, high, spread
        self._begun_badly: bool | None = None
        self._zero_at_first: frozenset[str] | None = None

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if self._begun_badly is False:
            return None
        finding = self._stuck_at_zero(record) or self._forward(record)
        if self._begun_badly is None:
            self._begun_badly = finding is not None
        return None if _never_left(record) else finding

    def _stuck_at_zero(self, record: StepRecord) -> Finding | None:
        weights = record.weight_norms
        if weights is None:
            return None
        kinds = record.layer_kinds or ("",) * len(weights)
        zero = tuple(
            name
            for name, kind, weight, norm in zip(record.layers, kinds, weights, record.layer_norms, strict=True)
            if weight == 0 and norm == 0 and "Norm" not in kind and ".bias" not in kind
        )
        if not zero:
            return None
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"{named(zero)}: all weights are zero, and so is the gradient.",
            step=record.step,
            layers=zero,
            evidence={"layers": float(len(zero))},
            causes=("weights were initialized with zeros",),
            remedies=(_away_from_zero(record, zero), remedies.INIT_NORMAL),
        )

    def _same_for_all(self, record: StepRecord, hidden: Sequence[ActivationStats]) -> Finding | None:
        first, last = hidden[0], hidden[-1]
        if any((a.dead or 0.0) > _DEAD for a in record.activations or ()):
            return None  # that is for the rule on dead units to say
        varies = first.sample_spread is not None and first.sample_spread > _SAME
        if not varies or last.sample_spread is None or last.sample_spread > _SAME or last.rms == 0:
            return None
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the forward signal is lost on its way: the output of {last.module} is the same for all samples"
                f"{f', but for {last.sample_spread:.1g} of its size' if last.sample_spread else ''}."
            ),
            step=record.step,
            layers=(last.module,),
            evidence={"first_spread": first.sample_spread or 0.0, "last_spread": last.sample_spread},
            causes=("the initial weights are too small", *missing_norms(record)),
            remedies=remedies.for_scale(deep_and_bare=len(hidden) >= DEEP, normalizes=has_norms(record)),
        )

    def _forward(self, record: StepRecord) -> Finding | None:
        hidden = _hidden(record.activations or ())
        if self._zero_at_first is None:  # adapters and closing layers of branches may begin so
            self._zero_at_first = frozenset(a.module for a in hidden if a.rms == 0)
        hidden = [a for a in hidden if a.module not in self._zero_at_first]
        if not hidden:
            return None
        smallest = min(hidden, key=lambda a: a.rms)
        largest = max((*hidden, *_functions(record.activations or ())), key=lambda a: a.rms)
        if (finding := self._same_for_all(record, hidden)) is not None:
            return finding
        first, last = hidden[0].rms, hidden[-1].rms
        grows = largest.rms > self.high or (last > self.spread * first)
        fades = smallest.rms < self.low or (first > self.spread * last)
        if not (grows or fades) or not math.isfinite(smallest.rms):
            return None
        # One layer that is applied over and over is as deep as its activations are many.
        deep = max(len(hidden), len(_functions(record.activations or ()))) >= DEEP
        what, worst = ("too large", largest) if grows else ("too small", smallest)
        far = largest.rms > self.high or smallest.rms < self.low or max(first / last, last / first) > _FAR * self.spread
        return Finding(
            rule=self.id,
            severity="critical" if far else "warning",
            message=(
                f"the forward signal {'grows' if grows else 'fades'} over depth: root mean square {first:.3g} after "
                f"{hidden[0].module}, {worst.rms:.3g} after {worst.module}."
            ),
            step=record.step,
            layers=(worst.module,),
            evidence={"first_rms": first, "last_rms": last, "smallest_rms": smallest.rms, "largest_rms": largest.rms},
            causes=(f"the initial weights are {what}", *missing_norms(record)),
            remedies=remedies.for_scale(deep_and_bare=deep, normalizes=has_norms(record)),
        )


def _away_from_zero(record: StepRecord, zero: Sequence[str]) -> str:
    """How to begin instead, by what it is that begins at zero."""
    shapes = dict(zip(record.layers, record.layer_shapes or (), strict=False))
    if all(shapes.get(name, "").isdigit() for name in zero):
        return remedies.SCALES_FROM_ZERO
    trains = dict(zip(record.layers, record.trainable or (), strict=False))
    beside_frozen = all(trains.get(name, False) for name in zero) and not all(trains.values())
    return remedies.ONE_FROM_ZERO if beside_frozen and len(zero) > 1 else remedies.FROM_ZERO


def _never_left(record: StepRecord) -> bool:
    """Whether steps are too small to have left the start at all, by a rate that is too low: then it is not to blame.

    Only of optimizers whose steps are as large as the rate, whatever the gradient is.
    """
    ratios = [ratio for ratio in record.update_ratios or () if ratio is not None and ratio > 0]
    return record.optimizer_kind in _NORMALIZING and bool(ratios) and max(ratios) < _STILL


def _hidden(activations: Sequence[ActivationStats]) -> list[ActivationStats]:
    """Layers with weights but the last one."""
    return [a for a in activations if any(part in a.kind for part in _HIDDEN)][:-1]


def _functions(activations: Sequence[ActivationStats]) -> list[ActivationStats]:
    """Activations without an upper bound, before the last layer with weights."""
    last = max((i for i, a in enumerate(activations) if any(part in a.kind for part in _HIDDEN)), default=0)
    return [a for a in activations[:last] if a.kind in ("ReLU", "GELU", "SiLU")]
