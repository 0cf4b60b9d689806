"""An optimizer that nobody steps."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class NoStep(Rule):
    """There were many backward passes and never an optimizer step that moved a weight, nor has one moved otherwise.

    A step whose gradients were cleared before it is none either.

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
        if record.cleared:
            what = "the backward pass gives the parameters gradients, and none is left when the optimizer steps."
            cause = "zero_grad() stands between backward() and step()"
            return self._finding(record, what, (cause,), remedies.ZERO_GRAD_FIRST)
        if record.waiting is None:
            return None
        what = f"{record.waiting} backward passes, and no optimizer step yet: no weight has moved."
        causes = ("optimizer.step() is never called", "gradients are accumulated over more batches than meant")
        return self._finding(record, what, causes, remedies.CALL_STEP)

    def _finding(self, record: StepRecord, what: str, causes: tuple[str, ...], remedy: str) -> Finding:
        waiting = record.waiting or 0
        return Finding(
            rule=self.id,
            severity="critical" if record.cleared or waiting > 64 else "warning",
            message=what,
            step=record.step,
            evidence={"backward_passes": float(waiting)},
            causes=causes,
            remedies=(remedy,),
        )
