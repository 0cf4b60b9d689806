"""Activations on the flat part of their curve."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import DEEP, has_norms, weight_layers
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.settled import SettledRatios
from lightning_gradguard.diagnose.trend import LossTrend
from lightning_gradguard.diagnose.words import count
from lightning_gradguard.record import ActivationStats, Finding, StepRecord

_RAW = 30.0  # root mean square of an input that nobody scaled
_THROWN = 0.2  # update-to-weight ratio of a step that throws weights about


class SaturatedActivations(Rule):
    """Most outputs of a tanh or sigmoid lie where its derivative is nearly zero.

    An activation after the last layer with weights is left out: a classifier's output is meant to saturate.
    Saturation that comes with training is reported only while the loss does not fall, and not when a step threw the
    weights there: that is for the rule on large updates to say.

    Args:
        share: of a module's outputs, in (0, 1).

    Raises:
        ValueError: if ``share`` is outside (0, 1).

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> well, flat = (quiet_activation("act", "Tanh", saturated=share) for share in (0.1, 0.9))
        >>> SaturatedActivations().observe(quiet_record(0, activations=(well, quiet_activation("head")))) is None
        True
        >>> SaturatedActivations().observe(quiet_record(0, activations=(flat, quiet_activation("head")))).message
        '90% of what act (Tanh) puts out is saturated since the first step; 1 module is affected.'
    """

    id = "saturated-activations"
    harmless_if_learning = True
    needs = ("activations",)

    def __init__(self, share: float = 0.6) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share
        self._from_the_start: bool | None = None
        self._trend = LossTrend()
        self._ratios = SettledRatios()
        self._thrown = False
        self._by_the_input = False  # which is so large that it saturates all there is: that is for its own rule to say

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._trend.add(record)
        inner = (a for a in _inner(record.activations or ()) if a.kind not in ("Softmax", "Attention"))
        flat = [a for a in inner if a.saturated is not None and a.saturated >= self.share]
        if self._from_the_start is None:
            self._from_the_start = bool(flat)
            self._by_the_input = any((a.input_rms or 0.0) > _RAW for a in record.activations or ())
        self._thrown = self._thrown or (self._ratios.median(record) or 0.0) > _THROWN
        if self._by_the_input or not flat or not (self._from_the_start or not (self._trend.is_falling or self._thrown)):
            return None
        worst = max(flat, key=lambda a: a.saturated or 0.0)
        grown = not self._from_the_start
        deep = len(weight_layers(record)) > DEEP
        return Finding(
            rule=self.id,
            severity="warning" if grown else "critical",
            message=(
                f"{worst.saturated:.0%} of what {worst.module} ({worst.kind}) puts out is saturated"
                f"{'' if grown else ' since the first step'}; {count(len(flat), 'module')} affected."
            ),
            step=record.step,
            layers=tuple(a.module for a in flat),
            evidence={"saturated": worst.saturated or 0.0, "modules": float(len(flat))},
            causes=("the learning rate is too high",) if grown else ("the initial weights are too large",),
            remedies=(
                (
                    remedies.lower_rate(),
                    *remedies.for_scale(deep_and_bare=True, normalizes=has_norms(record)),
                    remedies.OTHER_ACTIVATION,
                )
                if grown
                else (*remedies.for_scale(deep_and_bare=deep, normalizes=has_norms(record)), remedies.OTHER_ACTIVATION)
            ),
        )


def _inner(activations: tuple[ActivationStats, ...]) -> tuple[ActivationStats, ...]:
    """The activations that are followed by a layer; recurrent modules are layers and activations at once."""
    bare = ("Tanh", "Sigmoid", "ReLU", "ReLU6", "GELU", "SiLU")
    last = max((i for i, a in enumerate(activations) if a.kind not in bare), default=-1)
    return activations[: last + 1]
