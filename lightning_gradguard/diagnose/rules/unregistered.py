"""Weights that the model does not know of."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord

_SEVERAL = "they get a gradient and never change"


class Unregistered(Rule):
    """Modules or tensors in a plain list, dict or attribute get a gradient, and no optimizer and no checkpoint has it.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = Unregistered()
        >>> rule.observe(quiet_record(1, unregistered=())) is None
        True
        >>> rule.observe(quiet_record(1, unregistered=("net.blocks[0]", "net.blocks[1]"))).message.partition(": ")[2]
        'they get a gradient and never change, as no optimizer and no state_dict has what plain attributes hold.'
    """

    id = "not-registered"
    patience = 2
    needs = ("unregistered",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if not record.unregistered:
            return None
        does = "it gets a gradient and never changes" if len(record.unregistered) == 1 else _SEVERAL
        what = f"{does}, as no optimizer and no state_dict has what plain attributes hold."
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{named(record.unregistered)}: {what}",
            step=record.step,
            layers=record.unregistered,
            evidence={"places": float(len(record.unregistered))},
            causes=("modules in a plain list or dict, or tensors that are no nn.Parameter",),
            remedies=(remedies.REGISTER, "set requires_grad=False on them if they are not to train"),
        )
