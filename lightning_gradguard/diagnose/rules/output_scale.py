"""A first loss that is far above what a constant would cost."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.settled import round_factor
from lightning_gradguard.record import Finding, StepRecord


class OutputScale(Rule):
    """Cross-entropy begins many times above the cost of the best constant prediction: what goes into it is too large.

    An untrained net should be unsure, at about ``log(classes)``. One that is sure of everything begins far above:
    weights, inputs or a temperature blow its outputs up. *Info* once the loss comes down.

    Args:
        times: the first loss over that of the best constant, > 1. Usual initializations stay below 2.

    Raises:
        ValueError: if ``times`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> from lightning_gradguard.record import LossStats
        >>> OutputScale().observe(quiet_record(0, losses=(LossStats("cross-entropy", 2.2, value=2.4),))) is None
        True
        >>> OutputScale().observe(quiet_record(0, losses=(LossStats("cross-entropy", 2.2, value=310.0),))).message
        'cross-entropy began at 310, where the best constant prediction costs 2.2: outputs are far too large.'
    """

    id = "output-scale"
    patience = 2
    harmless_if_learning = True
    needs = ("losses",)

    def __init__(self, times: float = 8.0) -> None:
        if not times > 1:
            raise ValueError(f"times must be above 1, got {times}")
        self.times = times
        self._first: tuple[float, float] | None = None

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        for loss in record.losses or ():
            known = loss.value is not None and loss.baseline is not None and loss.baseline > 0
            if self._first is None and loss.kind != "squared-error" and known:
                self._first = loss.value or 0.0, loss.baseline or 0.0
        if self._first is None or self._first[0] < self.times * self._first[1]:
            return None
        value, baseline = self._first
        factor = round_factor(value / baseline)
        return Finding(
            rule=self.id,
            severity="critical" if value > 10 * self.times * baseline else "warning",
            message=(
                f"cross-entropy began at {value:.3g}, where the best constant prediction costs {baseline:.2g}: outputs "
                f"are far too large."
            ),
            step=record.step,
            evidence={"first_loss": value, "constant": baseline, "divide_by": factor},
            causes=("the last weights, or what goes into them, are too large", "a temperature far below one"),
            remedies=(remedies.smaller_logits(factor), remedies.INIT_NORMAL, remedies.NORMALIZE),
        )
