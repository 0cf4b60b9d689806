"""Gradients that add up over steps."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class OldGradients(Rule):
    """When a backward pass began, the gradients of the step before were still there, sample after sample.

    Looked at as the backward pass begins, so that it does not matter where ``zero_grad`` is called, nor over how many
    batches gradients are accumulated: of these the first must find them gone.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = OldGradients()
        >>> rule.observe(quiet_record(1, old_gradients=False)) is None
        True
        >>> rule.observe(quiet_record(1, old_gradients=True)).rule
        'no-zero-grad'
    """

    id = "no-zero-grad"
    patience = 2
    needs = ("old_gradients",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if not record.old_gradients:
            return None
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the backward pass of step {record.step} began on top of the gradients of the step before: they add "
                f"up over steps, to a norm of {record.total_norm:.3g} by now."
            ),
            step=record.step,
            layers=record.layers,
            evidence={"gradient_norm": record.total_norm},
            causes=("optimizer.zero_grad() is not called",),
            remedies=(remedies.ZERO_GRAD,),
        )
