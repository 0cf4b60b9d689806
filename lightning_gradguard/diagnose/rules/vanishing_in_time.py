"""Gradients that fade through time."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.time_profile import factors
from lightning_gradguard.diagnose.trend import LossTrend
from lightning_gradguard.record import Finding, StepRecord


class VanishingOverTime(Rule):
    """What a recurrent module read some steps ago has no influence on its output any more.

    Reads the temporal probe, ||d h_T / d x_t|| over t: parameters are shared over time, so that their gradient cannot
    show this. LSTM and GRU start at a factor near 0.6 a step and open up in training, plain tanh is at 0.57, sigmoid
    at 0.14: only what training hardly opens again is reported, only when it lasts, and only while the loss does not
    fall, since many a task needs no long memory.

    Args:
        factor: for one step back in time, in (0, 1); at 0.35 ten steps leave 3e-5.

    Raises:
        ValueError: if ``factor`` is outside (0, 1).

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = VanishingOverTime()
        >>> rule.observe(quiet_record(0, temporal_norms={"rnn": tuple(0.6**i for i in range(9, -1, -1))})) is None
        True
        >>> rule.observe(quiet_record(0, temporal_norms={"rnn": tuple(0.1**i for i in range(9, -1, -1))})).message
        'the gradient through rnn shrinks by ×0.1 for each step back in time.'
    """

    id = "vanishing-over-time"
    harmless_if_learning = True
    needs = ("temporal_norms",)

    def __init__(self, factor: float = 0.35) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {factor}")
        self.factor = factor
        self._trend = LossTrend()

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._trend.add(record)
        fading = {module: factor for module, factor in factors(record).items() if factor < self.factor}
        if not fading or self._trend.is_falling:
            return None
        module, factor = min(fading.items(), key=lambda item: item[1])
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"the gradient through {module} shrinks by ×{factor:.2g} for each step back in time.",
            step=record.step,
            layers=tuple(fading),
            evidence={"factor": factor, "after_ten_steps": factor**10},
            causes=("recurrent weights that are too small", "a saturating cell without gates"),
            remedies=(remedies.ORTHOGONAL, remedies.GATED),
        )
