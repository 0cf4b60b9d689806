"""A loss scale that falls and does not come back."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class LossScaleCollapse(Rule):
    """The loss scale has been halved down to ``floor`` or below: overflows go on after calibration.

    A dozen overflows at the start and one in some thousand steps are the scaler's routine; its scale then stays in
    the hundreds or more. At a scale of one nothing is left to halve that would help.

    Args:
        floor: scale at which to speak up, > 0.

    Raises:
        ValueError: if ``floor`` is not positive.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = LossScaleCollapse()
        >>> rule.observe(quiet_record(0, loss_scale=65536.0)) is None
        True
        >>> rule.observe(quiet_record(20, loss_scale=0.5, nonfinite_total=17)).message
        'the loss scale fell from 6.55e+04 to 0.5; 17 steps overflowed so far.'
    """

    id = "loss-scale-collapse"
    needs = ("loss_scale",)
    sees_bad_steps = True

    def __init__(self, floor: float = 1.0) -> None:
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor}")
        self.floor = floor
        self._highest = 0.0

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.loss_scale is not None
        self._highest = max(self._highest, record.loss_scale)
        if record.loss_scale > self.floor or record.loss_scale >= self._highest:
            return None
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the loss scale fell from {self._highest:.3g} to {record.loss_scale:.3g}; {record.nonfinite_total} "
                f"steps overflowed so far."
            ),
            step=record.step,
            layers=record.nonfinite_layers,
            evidence={"loss_scale": record.loss_scale, "highest": self._highest},
            causes=("a layer overflows in float16 at any scale", "weights or inputs are not finite"),
            remedies=(remedies.USE_BFLOAT16, remedies.lower_rate()),
        )
