"""Attention that looks at one place only."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.settled import SettledRatios
from lightning_gradguard.diagnose.words import count
from lightning_gradguard.record import ActivationStats, Finding, StepRecord

_THROWN = 0.2  # update-to-weight ratio of a step that throws weights about


class SaturatedAttention(Rule):
    """Most rows of a softmax inside the net put all their weight on one entry, where its derivative is zero.

    The last softmax is left out: a classifier's output is meant to be sure.

    Args:
        share: of rows with more than 0.98 on one entry, in (0, 1).
        logit: largest attention logit from which to speak up as well, > 0. Nets that train well stay below 50.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> rule, head = SaturatedAttention(), quiet_activation("head")
        >>> calm = quiet_activation("attention()", "Attention", saturated=0.1, entropy=0.9)
        >>> rule.observe(quiet_record(0, activations=(calm, head))) is None
        True
        >>> sure = quiet_activation("attention()", "Attention", saturated=0.9, entropy=0.02, max_logit=160.0)
        >>> rule.observe(quiet_record(0, activations=(sure, head))).message
        '90% of the rows of attention() look at one entry alone (entropy 0.02 of a uniform one, largest logit 160).'
    """

    id = "saturated-attention"
    patience = 2
    harmless_if_learning = True
    needs = ("activations",)

    def __init__(self, share: float = 0.6, logit: float = 100.0) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        if not logit > 0:
            raise ValueError(f"logit must be positive, got {logit}")
        self.share, self.logit = share, logit
        self._from_the_start: bool | None = None
        self._ratios = SettledRatios()
        self._thrown = False  # by a step that replaced weights: that is for the rule on large updates to say

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.activations is not None
        inner = _inner(record.activations)
        sure = [a for a in inner if (a.saturated or 0.0) >= self.share]
        sure = sure or [a for a in inner if (a.max_logit or 0.0) > self.logit and (a.saturated or 0.0) > self.share / 2]
        if self._from_the_start is None:
            self._from_the_start = bool(sure)
        self._thrown = self._thrown or (self._ratios.median(record) or 0.0) > _THROWN
        if not sure or (self._thrown and not self._from_the_start):
            return None
        worst = max(sure, key=lambda a: a.saturated or 0.0)
        logit = f", largest logit {worst.max_logit:.3g}" if worst.max_logit is not None else ""
        more = f"; {count(len(sure), 'module')} affected" if len(sure) > 1 else ""
        return Finding(
            rule=self.id,
            severity="critical" if self._from_the_start else "warning",
            message=(
                f"{worst.saturated or 0.0:.0%} of the rows of {worst.module} look at one entry alone (entropy "
                f"{worst.entropy or 0.0:.2g} of a uniform one{logit}){more}."
            ),
            step=record.step,
            layers=tuple(a.module for a in sure),
            evidence={"saturated": worst.saturated or 0.0, "entropy": worst.entropy or 0.0},
            causes=("logits are not divided by the square root of the head's width", "weights are too large"),
            remedies=(remedies.SCALE_LOGITS, remedies.lower_rate()),
        )


def _inner(activations: Sequence[ActivationStats]) -> list[ActivationStats]:
    """Softmax and attention before the last layer; of a net without layers of torch's all but the last softmax."""
    last = max((i for i, a in enumerate(activations) if a.kind == "Linear"), default=-1)
    found = [(i, a) for i, a in enumerate(activations) if a.kind in ("Softmax", "Attention")]
    # What is looked up by a softmax, over and over, is no classifier: that has one, at its end.
    again = len({a.module.partition("#")[0] for _, a in found}) < len(found)
    return [a for i, a in found if i < last or (again and i < found[-1][0])]
