"""A run that is not finite any more."""

from __future__ import annotations

import math

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.unstable import LargestStep
from lightning_gradguard.record import Finding, StepRecord

_BAD = ("skipped", "nonfinite", "rolled_back")
_CHANCE = 1e-4  # of a row that long, by what came before it, below which it is no row of bad batches


class Diverged(Rule):
    """There were good steps, and since some step none has been finite: mostly a consequence of what stands above.

    Args:
        records: of bad steps in a row, >= 2. A few bad batches in a row are not that many.

    Raises:
        ValueError: if ``records`` is below 2.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = Diverged()
        >>> rule.observe(quiet_record(9)) is None
        True
        >>> for step in (10, 11, 12):
        ...     finding = rule.observe(quiet_record(step, verdict="skipped", cause="nan"))
        >>> finding.message
        'no step since step 10 was finite, 3 in a row; before it the loss was 1 and the gradient norm 0.25.'
    """

    id = "diverged"
    patience = 1
    sees_bad_steps = True
    tallies = True

    def __init__(self, records: int = 3) -> None:
        if records < 2:
            raise ValueError(f"records must be at least 2, got {records}")
        self.records = records
        self._step = LargestStep()
        self._bad = 0
        self._since = 0
        self._norm = math.nan
        self._loss = math.nan
        self._good = False
        self._earlier = self._steps = 0  # bad steps before this row, and good ones

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._step.add(record)
        bad = (record.verdict in _BAD and record.cause != "spike") or (
            record.loss is not None and not math.isfinite(record.loss)
        )
        if not bad:
            self._steps += record.num_steps
            self._earlier += self._bad + max(record.num_nonfinite, record.num_nonfinite_losses)
            self._bad, self._good = 0, True
            self._norm = record.total_norm
            self._loss = record.loss if record.loss is not None else self._loss
            return None
        between = record.num_steps - max(1, record.num_nonfinite, record.num_nonfinite_losses)
        if between > 0:  # finite steps since the last record
            self._earlier, self._steps = self._earlier + self._bad, self._steps + between
            self._bad, self._good = 0, True
        self._since = record.step if self._bad == 0 else self._since
        self._bad += 1
        if self._bad < self.records or not self._good or is_usual(self._earlier, self._steps, self._bad):
            return None
        replay = f"{remedies.REPLAY}: {record.incident}" if record.incident else remedies.SAVE_INCIDENT
        lower = self._step.lower_rate
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"no step since step {self._since} was finite, {self._bad} in a row; before it the loss was "
                f"{self._loss:.3g} and the gradient norm {self._norm:.3g}."
            ),
            step=record.step,
            layers=record.nonfinite_layers,
            evidence={"since": float(self._since), "bad_in_a_row": float(self._bad), "last_norm": self._norm},
            causes=("the learning rate is too high", "a weight is not finite", "log, sqrt or a division at zero"),
            remedies=(replay, remedies.lower_rate()) if lower is None else (lower, replay),
        )


def is_usual(bad: int, good: int, row: int) -> bool:
    """Whether a row of bad steps is one that the share of bad steps before it makes likely: they may end as others did.

    The chance that the next step is bad too is what Laplace's rule of succession says of those so far, this row
    included, with one bad step in a thousand to begin with: a share that few steps tell of is not certain.

    Example:
        >>> is_usual(0, 100, 3), is_usual(9, 5, 19), is_usual(60, 20, 12)
        (False, True, True)
    """
    bad_before, steps = bad + 1e-3, bad + good + 1
    return math.prod((bad_before + i) / (steps + i) for i in range(row)) > _CHANCE
