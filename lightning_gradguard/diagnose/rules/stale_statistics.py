"""Running statistics that do not follow the batches."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, RunningStats, StepRecord

_LEARNED = 100  # batches by which a momentum of 0.01, the smallest that a framework has as its default, has moved on

_AS_BEGUN = "the zeros and ones that they began with, and evaluation normalizes by them"


class StaleStatistics(Rule):
    """A normalization evaluates by statistics that are the zeros and ones it began with, or does nothing in training.

    It normalizes by the batch while it trains, and by its running statistics in evaluation, to which each batch adds a
    share, the momentum. Training does not show it when these stay behind. Three ways:

    - they do not move at all: the momentum is zero, or what runs is a copy of the module;
    - they move so slowly that after an epoch, and a hundred batches, more than half of the beginning is left in them;
    - the module is in evaluation mode while it trains, and statistics of zero and one leave what it is given as it is.

    Statistics that were loaded, as those of a trained network, are left alone.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = StaleStatistics()
        >>> rule.observe(quiet_record(2, running=(RunningStats("norm", 0.73, 3, True),))) is None
        True
        >>> print(rule.observe(quiet_record(2, running=(RunningStats("norm", 1.0, 3, True),))).message)
        norm: running statistics are still the zeros and ones that they began with, and evaluation normalizes by them.
    """

    id = "stale-statistics"
    patience = 1  # each is certain when it is seen
    needs = ("running",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        seen = record.running or ()
        if idle := [stats for stats in seen if not stats.training and stats.batches == 0]:
            what = (
                "in evaluation mode while the net trains, with running statistics of zero and one: what they are given "
                "goes through as it is."
            )
            return _finding(record, idle, what, ("eval() was called, and train() was not",), remedies.TRAINING_MODE)
        if still := [stats for stats in seen if stats.training and stats.left == 1]:
            what = f"running statistics are still {_AS_BEGUN}."
            one = all(stats.batches for stats in still)
            causes = ("the momentum is zero",) if one else ("a copy of the module runs in its place",)
            return _finding(record, still, what, causes, remedies.MOMENTUM if one else remedies.RUN_ITSELF)
        slow = [stats for stats in seen if stats.training and stats.batches >= _LEARNED]
        if not slow or not record.epoch:
            return None
        most = max(stats.left for stats in slow)
        what = f"running statistics are after {slow[0].batches} batches still by {100 * most:.0f}% {_AS_BEGUN}."
        causes = ("the momentum is tiny: elsewhere it is what torch calls one minus the momentum",)
        return _finding(record, slow, what, causes, remedies.MOMENTUM)


def _finding(
    record: StepRecord, seen: Sequence[RunningStats], what: str, causes: tuple[str, ...], tries: str
) -> Finding:
    names = tuple(stats.module for stats in seen)
    return Finding(
        rule=StaleStatistics.id,
        severity="warning",
        message=f"{named(names)}: {what}",
        step=record.step,
        layers=names,
        evidence={"modules": float(len(names)), "left": max(stats.left for stats in seen)},
        causes=causes,
        remedies=(tries,),
    )
