"""Weight decay that outweighs the gradient."""

from __future__ import annotations

import math
import statistics

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.settled import SettledRatios
from lightning_gradguard.record import Finding, Severity, StepRecord

_COUPLED = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta")
_COMMON = 0.1  # weight decay up to which people choose it; if it shrinks the weights the learning rate is to blame
_THROWN = 0.2  # update-to-weight ratio of a step that throws weights about
_COMMON_IN_GRADIENT = 0.01  # the same where it is added to the gradient: beside such a decay the gradient is too small
_USUAL = 1e-4  # share of the weights that a step's decay takes, at most, in runs that train well


class WeightDecay(Rule):
    """Each step shrinks the weights by a large part, or the decay drowns the gradient.

    Where the decay is taken from the weights (SGD, AdamW and their kin) a step shrinks them by ``lr * weight_decay``:
    at ``shrink`` they are gone within some hundred steps. Where it is added to the gradient before it is normalized
    (Adam, RMSprop), what counts is ``weight_decay * ||w|| / ||g||``: above ``ratio`` the step follows the decay alone.

    A usual decay that shrinks the weights because steps are far too large anyway is left to the rule on these, and one
    that outweighs the gradient because that has vanished to the rules on this.

    Args:
        shrink: share of the weights that a step takes, > 0.
        ratio: decay over gradient, median over layers, > 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = WeightDecay()
        >>> rates = {"learning_rates": (5e-3,) * 6, "optimizer_kind": "AdamW"}
        >>> rule.observe(quiet_record(9, weight_decays=(0.01,) * 6, **rates)) is None
        True
        >>> rule.observe(quiet_record(9, weight_decays=(60.0,) * 6, **rates)).message
        'weight decay takes 30% of the weights at each step (60 times a learning rate of 0.005).'
    """

    id = "weight-decay"
    harmless_if_learning = True
    needs = ("weight_decays", "learning_rates")

    def __init__(self, shrink: float = 5e-3, ratio: float = 10.0) -> None:
        if not shrink > 0:
            raise ValueError(f"shrink must be positive, got {shrink}")
        if not ratio > 1:
            raise ValueError(f"ratio must be above 1, got {ratio}")
        self.shrink, self.ratio = shrink, ratio
        self._ratios = SettledRatios()
        self._thrown = False  # whether steps throw the weights about

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.weight_decays is not None and record.learning_rates is not None
        decay, rate = max(record.weight_decays, default=0.0), max(record.learning_rates, default=0.0)
        if decay == 0:
            return None
        if record.optimizer_kind in _COUPLED:
            return self._drowns(record, decay)
        shrinks = statistics.median(d * r for d, r in zip(record.weight_decays, record.learning_rates, strict=True))
        self._thrown = self._thrown or (self._ratios.median(record) or 0.0) > _THROWN
        if shrinks < self.shrink or (self._thrown and decay <= _COMMON):
            return None
        return self._finding(
            record,
            f"weight decay takes {100 * min(shrinks, 1.0):.2g}% of the weights at each step ({decay:g} times a "
            f"learning rate of {rate:g}).",
            {"shrinks": shrinks, "weight_decay": decay},
            "critical" if shrinks > 4 * self.shrink else "warning",
            decay * _USUAL / shrinks,
        )

    def _drowns(self, record: StepRecord, decay: float) -> Finding | None:
        ratios = [
            d * weight / norm
            for d, weight, norm in zip(
                record.weight_decays or (), record.weight_norms or (), record.layer_norms, strict=False
            )
            if weight is not None and norm is not None and norm > 0 and math.isfinite(weight) and math.isfinite(norm)
        ]
        if not ratios or statistics.median(ratios) < self.ratio or decay <= _COMMON_IN_GRADIENT:
            return None
        times = statistics.median(ratios)
        return self._finding(
            record,
            f"weight decay adds {times:.3g} times the gradient's own norm to it, before the optimizer normalizes.",
            {"times": times, "weight_decay": decay},
            "critical" if times > 10 * self.ratio else "warning",
            decay * 0.1 / times,
        )

    def _finding(
        self, record: StepRecord, message: str, evidence: dict[str, float], severity: Severity, to: float
    ) -> Finding:
        return Finding(
            rule=self.id,
            severity=severity,
            message=message,
            step=record.step,
            layers=record.layers,
            evidence=evidence,
            causes=("the weight decay is far too large for this optimizer and learning rate",),
            remedies=(f"{remedies.LOWER_DECAY} to about {to:.1g}",),
        )
