"""An optimizer that nobody steps."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class NoStep(Rule):
    """There were many backward passes and never an optimizer step, nor has a weight moved otherwise.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = NoStep()
        >>> rule.observe(quiet_record(32)) is None
        True
        >>> rule.observe(quiet_record(32, num_steps=0, waiting=32)).message
        '32 backward passes, and no optimizer step yet: no weight has moved.'
    """

    id = "no-step"
    patience = 1
    sees_missing_steps = True
    tallies = True

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if record.waiting is None:
            return None
        return Finding(
            rule=self.id,
            severity="critical" if record.waiting > 64 else "warning",
            message=f"{record.waiting} backward passes, and no optimizer step yet: no weight has moved.",
            step=record.step,
            evidence={"backward_passes": float(record.waiting)},
            causes=("optimizer.step() is never called", "gradients are accumulated over more batches than meant"),
            remedies=(remedies.CALL_STEP,),
        )
