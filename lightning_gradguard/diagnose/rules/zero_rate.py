"""A learning rate of zero."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class ZeroRate(Rule):
    """The learning rate of every layer is zero, or steps leave every weight bit for bit where it was.

    A warm-up may begin at zero, so that it must last for four records, the first steps among them. It is silent once
    any step has moved a weight: that a rate decays is for another rule to say.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = ZeroRate()
        >>> rule.observe(quiet_record(1, learning_rates=(1e-3,) * 6)) is None
        True
        >>> rule = ZeroRate()
        >>> rule.observe(quiet_record(1, learning_rates=(0.0,) * 6, update_ratios=(0.0,) * 6)).message
        'the learning rate of all 6 layers is exactly zero: steps move no weight.'
    """

    id = "rate-zero"
    patience = 4

    def __init__(self) -> None:
        self._moved = False
        self._still = False

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        ratios = [ratio for ratio in record.update_ratios or () if ratio is not None]
        rates = record.learning_rates
        zero = rates is not None and bool(rates) and max(rates) == 0
        if ratios:
            self._moved = self._moved or max(ratios) > 0
            self._still = max(ratios) == 0 and record.total_norm > 0
        if self._moved or not (zero or self._still):
            return None
        what = (
            f"the learning rate of all {len(record.layers)} layers is exactly zero: steps move no weight."
            if zero
            else f"no step has moved a weight, although the gradient norm is {record.total_norm:.2g}."
        )
        return Finding(
            rule=self.id,
            severity="critical",
            message=what,
            step=record.step,
            layers=record.layers,
            evidence={"learning_rate": max(rates) if rates else 0.0, "gradient_norm": record.total_norm},
            causes=(
                ("the learning rate or its scheduler is set to zero",)
                if zero
                else ("optimizer.step() is never called", "the learning rate is too small for the weights' precision")
            ),
            remedies=(remedies.SET_RATE,) if zero else (remedies.CALL_STEP, remedies.RAISE_RATE),
        )
