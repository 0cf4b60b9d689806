"""Gradients too small for float16."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class Fp16Underflow(Rule):
    """Most of the gradient at float16 activations is zero or below the smallest normal number, 6.1e-5.

    What is below loses its digits, and below 6e-8 everything. Judged by the half of the layers that fare best, so
    that silent units, whose gradient is truly zero, do not count. With a live loss scale the scaler lifts gradients
    before this happens, and the same figures mean that the scale has collapsed.

    Args:
        share: of the elements, in (0, 1). At 0.9 one digit in ten survives anywhere.

    Raises:
        ValueError: if ``share`` is outside (0, 1).

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> rule = Fp16Underflow()
        >>> well, lost = (quiet_activation("a", dtype="float16", grad_underflow=share) for share in (0.2, 0.99))
        >>> rule.observe(quiet_record(0, activations=(well,))) is None
        True
        >>> rule.observe(quiet_record(0, activations=(lost,))).evidence["underflow"]
        0.99
    """

    id = "fp16-underflow"
    needs = ("activations",)

    def __init__(self, share: float = 0.9) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.activations is not None
        seen = [a for a in record.activations if a.dtype == "float16" and a.grad_underflow is not None]
        shares = sorted(a.grad_underflow for a in seen if a.grad_underflow is not None)
        if not shares or shares[(len(shares) - 1) // 2] < self.share:
            return None
        lost = [a for a in seen if a.grad_underflow is not None and a.grad_underflow >= self.share]
        median = shares[(len(shares) - 1) // 2]
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"{median:.0%} of the gradient at float16 activations is below 6.1e-5 in half of {len(shares)} "
                f"modules: it is rounded to zero or nearly so."
            ),
            step=record.step,
            layers=tuple(a.module for a in lost),
            evidence={"underflow": median, "modules": float(len(lost)), "loss_scale": record.loss_scale or 1.0},
            causes=(
                "the backward pass runs in float16 without a loss scale",
                "the loss is multiplied by a tiny factor",
            ),
            remedies=(remedies.USE_SCALER,),
        )
