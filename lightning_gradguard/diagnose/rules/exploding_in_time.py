"""Gradients that grow through time."""

from __future__ import annotations

import math

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.time_profile import factors
from lightning_gradguard.record import Finding, StepRecord


class ExplodingOverTime(Rule):
    """What a recurrent module read long ago has many times the influence of what it read just now.

    Reads the temporal probe, ||d h_T / d x_t|| over t.

    Args:
        growth: of the norm from the last step back to the first, > 1. Modules that train well stay below 2.

    Raises:
        ValueError: if ``growth`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = ExplodingOverTime()
        >>> rule.observe(quiet_record(0, temporal_norms={"rnn": tuple(0.6**i for i in range(9, -1, -1))})) is None
        True
        >>> rule.observe(quiet_record(0, temporal_norms={"rnn": tuple(2.0**i for i in range(9, -1, -1))})).message
        'the gradient through rnn grows by ×2 for each step back in time, ×5.1e+02 over 10 steps.'
    """

    id = "exploding-over-time"
    harmless_if_learning = True
    patience = 2
    needs = ("temporal_norms",)

    def __init__(self, growth: float = 30.0) -> None:
        if not growth > 1:
            raise ValueError(f"growth must be above 1, got {growth}")
        self.growth = growth

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        norms = record.temporal_norms or {}
        growing = {m: f for m, f in factors(record).items() if f ** (len(norms[m]) - 1) > self.growth}
        if not growing:
            return None
        module, factor = max(growing.items(), key=lambda item: item[1])
        total = factor ** (len(norms[module]) - 1) if math.isfinite(factor) else math.inf
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the gradient through {module} grows by ×{factor:.3g} for each step back in time, ×{total:.2g} over "
                f"{len(norms[module])} steps."
            ),
            step=record.step,
            layers=tuple(growing),
            evidence={"factor": factor, "growth": total},
            causes=("the spectral radius of the recurrent weights is above one",),
            remedies=(remedies.ORTHOGONAL, remedies.clip(clips=record.coefficient is not None), remedies.GATED),
        )
