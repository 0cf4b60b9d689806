"""Targets far from unit scale."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import BatchStats, Finding, StepRecord


class TargetScale(Rule):
    """A tensor of the batch is far larger than one, and the first loss is as large as if it were predicted raw.

    A net puts out numbers near one at first; with targets of 1e5 a squared error begins at 1e10, and the last bias
    has a hundred thousand steps of Adam to go.

    Args:
        rms: root mean square of the targets from which to speak up, > 1.

    Raises:
        ValueError: if ``rms`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> from lightning_gradguard.record import BatchStats
        >>> rule = TargetScale()
        >>> rule.observe(quiet_record(0, loss=0.9, inputs=(BatchStats("0", 1.0), BatchStats("1", 1e5)))) is None
        True
        >>> rule = TargetScale()
        >>> rule.observe(quiet_record(0, loss=9e9, inputs=(BatchStats("0", 1.0), BatchStats("1", 1e5)))).message
        'targets (1 of the batch) have a root mean square of 1e+05, and the first loss is 9e+09.'
    """

    id = "target-scale"
    patience = 2
    harmless_if_learning = True
    needs = ("inputs", "loss")

    def __init__(self, rms: float = 30.0) -> None:
        if not rms > 1:
            raise ValueError(f"rms must be above 1, got {rms}")
        self.rms = rms
        self._first: float | None = None

    def _is_predicted_raw(self, tensor: BatchStats, loss: float, entered: float) -> bool:
        """Whether a tensor is large, did not enter the first layer, and the loss is as large as it makes it."""
        if not tensor.floating or tensor.rms <= self.rms or 0.9 < entered / tensor.rms < 1.1:
            return False
        return 0.1 * tensor.rms < loss < 3 * tensor.rms**2

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.inputs is not None and record.loss is not None
        if self._first is None:
            self._first = record.loss
        entered = max((a.input_rms or 0.0 for a in record.activations or ()), default=0.0)
        large = [b for b in record.inputs if self._is_predicted_raw(b, self._first, entered)]
        if not large:
            return None
        worst = max(large, key=lambda b: b.rms)
        return Finding(
            rule=self.id,
            severity="critical" if worst.rms > 30 * self.rms else "warning",
            message=(
                f"targets ({worst.name} of the batch) have a root mean square of {worst.rms:.3g}, and the first loss "
                f"is {self._first:.3g}."
            ),
            step=record.step,
            evidence={"target_rms": worst.rms, "first_loss": self._first},
            causes=("the targets are not normalized",),
            remedies=(remedies.NORMALIZE_TARGET,),
        )
