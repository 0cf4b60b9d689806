"""Input that nobody normalized."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class InputScale(Rule):
    """What enters the first layer is far larger than the unit variance that initializations are made for.

    Pixels from 0 to 255, prices, time stamps. Silent if the first layer normalizes.

    Args:
        rms: root mean square of the input from which to speak up, > 0. 30 is far from any standardized data, and
            below raw pixels (about 130).

    Raises:
        ValueError: if ``rms`` is not positive.
    """

    id = "input-scale"
    harmless_if_learning = True
    patience = 2
    needs = ("activations",)

    def __init__(self, rms: float = 30.0) -> None:
        if not rms > 0:
            raise ValueError(f"rms must be positive, got {rms}")
        self.rms = rms

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        first = next((a for a in record.activations or () if a.input_rms is not None), None)
        if first is None or first.input_rms is None or "Norm" in first.kind or not first.input_rms > self.rms:
            return None
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"the input of {first.module} has a root mean square of {first.input_rms:.3g}; about 1 is usual.",
            step=record.step,
            layers=(first.module,),
            evidence={"input_rms": first.input_rms},
            causes=("the input is not normalized",),
            remedies=(remedies.NORMALIZE_INPUT,),
        )
