"""An output that cannot move."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class SaturatedOutput(Rule):
    """The last activation is a sigmoid, tanh or ReLU whose outputs are nearly all flat, and the loss does not fall.

    A classifier that has learned is sure of itself, so that this is *info* while the loss falls.

    Args:
        share: of the outputs, in (0, 1).

    Raises:
        ValueError: if ``share`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> rule, last = SaturatedOutput(), quiet_activation("head")
        >>> good, flat = (quiet_activation("sigmoid()", "Sigmoid", saturated=s) for s in (0.1, 0.99))
        >>> rule.observe(quiet_record(0, activations=(last, good))) is None
        True
        >>> rule.observe(quiet_record(0, activations=(last, flat))).message
        '99% of the outputs of sigmoid() (Sigmoid), the last activation, are where its derivative is nearly zero.'
    """

    id = "saturated-output"
    harmless_if_learning = True
    needs = ("activations",)

    def __init__(self, share: float = 0.9) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if not record.activations:
            return None
        last = record.activations[-1]
        flat = last.dead if last.kind in ("ReLU", "ReLU6") else last.saturated
        if flat is None or flat < self.share or last.kind not in ("Sigmoid", "Tanh", "ReLU", "ReLU6", "Softmax"):
            return None
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"{flat:.0%} of the outputs of {last.module} ({last.kind}), the last activation, are where its "
                f"derivative is nearly zero."
            ),
            step=record.step,
            layers=(last.module,),
            evidence={"saturated": flat},
            causes=("the targets lie outside of its range", "what goes into it is far too large"),
            remedies=(remedies.OPEN_OUTPUT, remedies.INIT_NORMAL),
        )
