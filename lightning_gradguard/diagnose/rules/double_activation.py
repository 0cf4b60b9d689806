"""Probabilities where a loss wants raw outputs."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class DoubleActivation(Rule):
    """A loss that applies softmax or sigmoid itself is given what has been through one already.

    Cross-entropy: rows that lie in [0, 1] and sum to one. Binary cross-entropy with logits: all values in [0, 1], on
    every sampled step.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> from lightning_gradguard.record import LossStats
        >>> rule = DoubleActivation()
        >>> rule.observe(quiet_record(0, losses=(LossStats("cross-entropy"),))) is None
        True
        >>> rule.observe(quiet_record(0, losses=(LossStats("cross-entropy", 2.3, True),))).message
        'cross-entropy is given probabilities, and applies softmax to them once more.'
    """

    id = "double-activation"
    patience = 3
    needs = ("losses",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        given = next((loss for loss in record.losses or () if loss.probabilities), None)
        if given is None:
            return None
        twice = "sigmoid" if given.kind == "binary-cross-entropy" else "softmax"
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{given.kind} is given probabilities, and applies {twice} to them once more.",
            step=record.step,
            evidence={"loss": given.value or 0.0},
            causes=(f"the model ends in a {twice}, and so does the loss",),
            remedies=(remedies.PASS_LOGITS,),
        )
