"""Two optimizers, one of which runs away from the other."""

from __future__ import annotations

import math
import statistics
from collections import deque

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.settled import round_factor
from lightning_gradguard.record import Finding, StepRecord

_USUAL = 0.05  # median update-to-weight ratio up to which a step is as usual
_CALM = 0.005  # at which adversaries train


class OptimizerImbalance(Rule):
    """One of several optimizers moves its weights far more than another.

    Compares the median measured ||change|| / ||weights|| of each optimizer's layers, which does not depend on the
    scale of the losses. In a GAN in balance the two sides stay within a factor of ten. Where the faster one moves as is
    usual it is the other one's rate that is to be raised to it, by the factor between them.

    Args:
        factor: between the largest and the smallest, > 1. GANs that train well were seen at up to 9.

    Raises:
        ValueError: if ``factor`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = OptimizerImbalance()
        >>> rule.observe(quiet_record(0, optimizer=0, num_optimizers=2, update_ratios=(0.2,) * 6)) is None
        True
        >>> rule.observe(quiet_record(0, optimizer=1, num_optimizers=2, update_ratios=(1e-4,) * 6)) is None
        True
        >>> rule.observe(quiet_record(1, optimizer=0, num_optimizers=2, update_ratios=(0.2,) * 6)).evidence["times"]
        2000.0
    """

    id = "optimizer-imbalance"
    needs = ("update_ratios",)
    scope = "run"

    def __init__(self, factor: float = 20.0) -> None:
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}")
        self.factor = factor
        self._ratios: dict[int, deque[float]] = {}

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        found = [r for r in record.update_ratios or () if r is not None and math.isfinite(r)]
        if record.num_optimizers < 2 or not found:
            return None
        self._ratios.setdefault(record.optimizer, deque(maxlen=5)).append(statistics.median(found))
        medians = {index: statistics.median(values) for index, values in self._ratios.items()}
        fast, slow = max(medians, key=lambda i: medians[i]), min(medians, key=lambda i: medians[i])
        if len(medians) < 2 or record.optimizer != fast or medians[fast] <= self.factor * medians[slow]:
            return None
        times = medians[fast] / medians[slow] if medians[slow] > 0 else math.inf
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"optimizer {fast} changes its weights {times:.3g} times as much a step as optimizer {slow} "
                f"({medians[fast]:.2g} against {medians[slow]:.2g} of their norm)."
            ),
            step=record.step,
            evidence={"times": times, "fast": medians[fast], "slow": medians[slow]},
            causes=("learning rates that do not fit together", "one side has won, and the other gets no gradient"),
            remedies=(_tries(fast, slow, medians), remedies.EVEN_RATES, remedies.LESS_TRAINING),
        )


def _tries(fast: int, slow: int, medians: dict[int, float]) -> str:
    """Which rate to change: the slow one where it is below what is usual while the fast one is not above it."""
    if medians[fast] > _USUAL or medians[slow] == 0:
        factor = min(round_factor(medians[fast] / _CALM), 300.0)
        return f"{remedies.lower_rate(factor)}, that of optimizer {fast}"
    return f"{remedies.raise_rate(round_factor(medians[fast] / medians[slow]))}, that of optimizer {slow}"
