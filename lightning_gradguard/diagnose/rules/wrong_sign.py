"""A loss that is maximized by mistake."""

from __future__ import annotations

import math

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class WrongSign(Rule):
    """The loss falls below zero without end, and the gradient grows on the way.

    A loss with a floor slows down as it nears it; one whose sign is wrong has none: it was negative from the first
    record, has grown to ``factor`` times its first size, and the gradient to ``factor`` times its smallest. Losses of
    densities may be negative as well, but neither starts below zero and runs away with a growing gradient. Not asked
    with several optimizers, where a critic's loss may do so.

    Args:
        factor: growth of loss and gradient, > 1. 3 is out of reach for a loss that only converges below zero.

    Raises:
        ValueError: if ``factor`` is not above 1.
    """

    id = "wrong-sign"
    patience = 2
    needs = ("loss",)
    sees_bad_steps = True

    def __init__(self, factor: float = 3.0) -> None:
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}")
        self.factor = factor
        self._first: float | None = None
        self._smallest = math.inf

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.loss is not None
        if self._first is None:
            self._first = record.loss
        if math.isfinite(record.total_norm):
            self._smallest = min(self._smallest, record.total_norm)
        if record.num_optimizers > 1 or not self._first < 0:
            return None
        broken = not (math.isfinite(record.loss) and math.isfinite(record.total_norm))
        ran = record.loss < self.factor * self._first and record.total_norm > self.factor * self._smallest
        if not (broken or ran):
            return None
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the loss began at {self._first:.3g} and fell to {record.loss:.3g} without slowing down, while the "
                f"gradient norm grew from {self._smallest:.3g} to {record.total_norm:.3g}."
            ),
            step=record.step,
            layers=record.layers,
            evidence={"first_loss": self._first, "loss": record.loss, "smallest_norm": self._smallest},
            causes=("the loss has the wrong sign", "a loss that has no lower bound"),
            remedies=(remedies.FLIP_SIGN,),
        )
