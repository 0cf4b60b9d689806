"""Layers that the optimizer was not given."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord


class Unoptimized(Rule):
    """A layer requires a gradient and gets one, and no optimizer has it: it stays as it was initialized.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = Unoptimized()
        >>> rule.observe(quiet_record(0, unoptimized=())) is None
        True
        >>> rule.observe(quiet_record(0, unoptimized=("head",))).message
        'head: gets a gradient, and is in no optimizer: it never changes.'
    """

    id = "not-in-optimizer"
    patience = 2
    needs = ("unoptimized",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if not record.unoptimized:
            return None
        one = len(record.unoptimized) == 1
        what = (
            "gets a gradient, and is in no optimizer: it never changes."
            if one
            else ("get a gradient, and are in no optimizer: they never change.")
        )
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{named(record.unoptimized)}: {what}",
            step=record.step,
            layers=record.unoptimized,
            evidence={"layers": float(len(record.unoptimized))},
            causes=("the optimizer was built of some of the parameters only", "layers were added after it was built"),
            remedies=(remedies.OWN_PARAMETERS, "freeze them with requires_grad=False if they are not to train"),
        )
