"""Steps whose gradients or losses are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.rules.diverged import is_usual
from lightning_gradguard.diagnose.rules.double_activation import is_of_no_probabilities
from lightning_gradguard.diagnose.settled import SettledRatios
from lightning_gradguard.record import Finding, Severity, StepRecord

_BAD = ("skipped", "nonfinite", "rolled_back")
_MOST = 64  # batches that are remembered
_LASTING = 3  # bad steps in a row with no good one after them
_THROWN = 0.5  # update-to-weight ratio of a step that replaces the weights
_LEAP = 10.0  # growth of the gradient norm that announces a break


class BadBatches(Rule):
    """Some steps are not finite while others are: how many, since when, at which batches, forward or backward.

    A run whose loss or gradient was rising before it broke, or whose weights a step has replaced, is left to what made
    it so, one of which no step is finite any more to ``diverged``, and targets of ``kl_div`` below zero, whose
    logarithm is NaN, to ``double-activation``. A step that a loss scaler leaves out is its routine, and one that the
    guard drops as a spike is finite; neither is counted.

    Example:
        A record before and after the step that was not finite:

        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = BadBatches()
        >>> rule.observe(quiet_record(29)) is None
        True
        >>> bad = quiet_record(30, verdict="skipped", cause="nan", nonfinite_layers=("a",), batch=30, num_nonfinite=1)
        >>> print(rule.observe(bad).message)  # doctest: +ELLIPSIS
        1 of 2 steps was not finite (NaN), at step 30: the gradient of 1 of 6 layers, while the loss was finite. It ...
    """

    id = "bad-batches"
    patience = 1
    sees_bad_steps = True
    tallies = True

    def __init__(self) -> None:
        self._steps = 0
        self._bad = 0
        self._first: int | None = None
        self._last = 0
        self._in_a_row = 0
        self._good_before = False
        self._forward = 0  # of the bad ones, how many had a loss that was not finite
        self._raised = 0  # of the bad ones, how many ended in an exception
        self._batches: list[tuple[int, int]] = []  # (epoch, batch)
        self._incident: str | None = None
        self._progress = Progress()
        self._norms: list[float] = []  # the first and the last one that was finite
        self._rising = False
        self._ratios = SettledRatios()
        self._told = False  # whether it is known what makes the loss NaN
        self._thrown = False  # whether a step has replaced the weights: what comes after is its consequence

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._steps += record.num_steps
        self._thrown = self._thrown or (self._ratios.median(record) or 0.0) > _THROWN
        self._told = self._told or any(map(is_of_no_probabilities, record.losses or ()))
        at_this_step = record.verdict in _BAD and record.cause != "spike"
        bad = max(record.num_nonfinite if record.verdict != "overflow" else 0, record.num_nonfinite_losses)
        bad = max(bad, int(at_this_step))
        if record.cause == "spike":
            bad = 0
        if bad == 0:
            self._progress.add(record)
            self._in_a_row = 0
            self._good_before = True
            self._norms = [*self._norms[:1], record.total_norm]
            return None if self._first is None or self._rising else self._finding(record)
        if self._first is None:
            self._rising = (
                self._thrown
                or self._told
                or self._progress.state == "rises"
                or self._norms[-1:] > [_LEAP * n for n in self._norms[:1]]
            )
            self._first = record.step
        self._bad += bad
        self._last = record.step
        if record.num_steps > bad:  # finite steps since the last record
            self._in_a_row, self._good_before = 0, True
        self._in_a_row += 1
        self._forward += record.num_nonfinite_losses or int(record.loss is not None and not math.isfinite(record.loss))
        self._raised += int(record.cause == "exception")
        if at_this_step and record.batch is not None and len(self._batches) < _MOST:
            self._batches.append((record.epoch or 0, record.batch))
        self._incident = record.incident or self._incident
        # It has diverged, which is another finding; unless so many steps were bad that such a row may end.
        earlier = self._bad - self._in_a_row
        lasts = self._in_a_row >= _LASTING and not is_usual(earlier, self._steps - self._bad, self._in_a_row)
        gone = lasts and self._good_before
        return None if self._rising or gone else self._finding(record)

    def _finding(self, record: StepRecord) -> Finding:
        assert self._first is not None
        lasting = self._in_a_row >= _LASTING
        back = self._that_come_back()
        return Finding(
            rule=self.id,
            severity=self._severity(record, lasting),
            message=f"{self._how_many(lasting)}: {self._where(record)}.{self._when(back)}{_outcome(record, self._bad)}",
            step=record.step,
            layers=record.nonfinite_layers,
            evidence={"bad_steps": float(self._bad), "steps": float(self._steps), "first": float(self._first)},
            causes=self._causes(lasting, back),
            remedies=self._remedies(lasting, back),
        )

    def _severity(self, record: StepRecord, lasting: bool) -> Severity:
        return "critical" if lasting or record.verdict == "nonfinite" else "warning"

    def _how_many(self, lasting: bool) -> str:
        if not self._good_before:
            return f"no step has been finite since the first one, {self._bad} so far"
        if self._bad == 1:
            return f"1 of {self._steps} steps was not finite (NaN), at step {self._first}"
        span = f"the first at step {self._first}, the last at {self._last}"
        return f"{self._bad} of {self._steps} steps were not finite, {span}"

    def _where(self, record: StepRecord) -> str:
        hit, of = len(record.nonfinite_layers), len(record.layers)
        layers = "all layers" if hit == of and of > 1 else f"{hit} of {of} layers"
        if self._raised >= self._bad:
            return "it ended in an exception because something was not finite, before there were gradients"
        if self._forward + self._raised >= self._bad:
            return "the loss itself was not finite, so it happened in the batch or in the forward pass"
        if hit == 0:
            return "in the gradients, while the loss was finite"
        return f"the gradient of {layers}, while the loss was finite"

    def _that_come_back(self) -> tuple[int, ...]:
        """Batches that were bad in more than one epoch."""
        epochs: dict[int, set[int]] = {}
        for epoch, batch in self._batches:
            epochs.setdefault(batch, set()).add(epoch)
        return tuple(sorted(batch for batch, seen in epochs.items() if len(seen) > 1))

    def _when(self, back: tuple[int, ...]) -> str:
        if back:
            return f" They come back in each epoch at {_batches(back)}."
        if self._batches and self._bad > 1:
            return f" They were at {_batches(batch for _, batch in self._batches)}."
        return ""

    def _causes(self, lasting: bool, back: tuple[int, ...]) -> tuple[str, ...]:
        if back:
            return ("the data of these batches", "log, sqrt or a division at zero that these data reach")
        if lasting:
            return ("a weight, a buffer or the data are not finite", "log, sqrt or a division at zero")
        return (
            "the data of the batch",
            "log, sqrt or a division at zero",
            "a learning rate near the edge of stability",
        )

    def _remedies(self, lasting: bool, back: tuple[int, ...]) -> tuple[str, ...]:
        looked = back or tuple(batch for _, batch in self._batches)
        look = f"{remedies.LOOK_AT_BATCH}: {_batches(looked)}" if looked else remedies.LOOK_AT_BATCH
        replay = f"{remedies.REPLAY}: {self._incident}" if self._incident else remedies.SAVE_INCIDENT
        return (replay, look) if lasting or self._incident else (look, replay)


def _batches(batches: Iterable[int]) -> str:
    few = list(dict.fromkeys(batches))
    more = f" and {len(few) - 6} more" if len(few) > 6 else ""
    return ("batch " if len(few) == 1 else "batches ") + ", ".join(map(str, few[:6])) + more


def _outcome(record: StepRecord, bad: int) -> str:
    this = "It" if bad == 1 else "The last"
    return {
        "skipped": f" {this} was skipped: no weight moved.",
        "rolled_back": " The weights were rolled back.",
        "nonfinite": f" {this} was applied to the weights, since nobody guards them.",
    }.get(record.verdict, "")
