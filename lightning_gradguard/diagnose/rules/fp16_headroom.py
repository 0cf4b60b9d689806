"""Activations close to the largest float16."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class Fp16Headroom(Rule):
    """A float16 activation uses more than half of the range: the next step may overflow.

    Args:
        share: of the largest finite number (65,504 in float16), in (0, 1). Half leaves one doubling.

    Raises:
        ValueError: if ``share`` is outside (0, 1).

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> rule = Fp16Headroom()
        >>> rule.observe(quiet_record(0, activations=(quiet_activation("a", dtype="float16"),))) is None
        True
        >>> close = quiet_activation("a", dtype="float16", max_abs=48000.0, range_used=0.73)
        >>> rule.observe(quiet_record(0, activations=(close,))).message
        "a reaches 4.8e+04, 73% of float16's range."
    """

    id = "fp16-headroom"
    harmless_if_learning = True
    patience = 2
    needs = ("activations",)

    def __init__(self, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        self.share = share

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.activations is not None
        close = [
            a for a in record.activations if a.dtype == "float16" and not a.range_used < self.share
        ]  # NaN: beyond it
        if not close:
            return None
        worst = max(close, key=lambda a: a.range_used)
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{worst.module} reaches {worst.max_abs:.3g}, {worst.range_used:.0%} of {worst.dtype}'s range.",
            step=record.step,
            layers=tuple(a.module for a in close),
            evidence={"max_abs": worst.max_abs, "range_used": worst.range_used},
            causes=("activations grow from layer to layer", "a sum or a norm over many elements in half precision"),
            remedies=(remedies.USE_BFLOAT16, remedies.lower_rate()),
        )
