"""Finds out which samples of a batch make its step go bad, by running the step on some of them at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn

from lightning_gradguard.incident.bundle import MicroBatch
from lightning_gradguard.incident.odd import what_is_odd
from lightning_gradguard.incident.rows import Rows
from lightning_gradguard.incident.runner import Outcome, StepFailed, StepRunner

_MOST_RUNS = 400
_FILLERS = 16  # rows tried as the harmless one
_LARGEST_SHARES = 5
_SMALL_SHARE = 0.02
_STANDS_OUT = 5.0  # times an even share
_ADDS_UP = 0.1  # by how much the shares of two halves may miss the whole


@dataclass(frozen=True)
class Sample:
    """One sample that did it.

    Attributes:
        batch: which batch of the step, 0 without accumulation.
        index: its row.
        share: of the gradient norm, for a finite step: how much of the gradient's length goes back to this sample.
        odd: in which part of the batch it differs from the rest, and how.
    """

    batch: int
    index: int
    share: float | None
    odd: tuple[str, ...]


@dataclass(frozen=True)
class SampleReport:
    """Which samples made a step go bad.

    Attributes:
        size: samples in the batch.
        samples: the smallest set that was found; for a finite step those with the largest shares.
        together: whether none of them does it alone.
        num_runs: how many steps that took.
        notes: what a reader should know, why nothing was found among it.
    """

    size: int
    samples: tuple[Sample, ...]
    together: bool
    num_runs: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self._head()]
        for sample in self.samples:
            place = f"sample {sample.index}" + (f" of batch {sample.batch}" if sample.batch else "")
            share = "" if sample.share is None else f": {sample.share:.1%} of the gradient norm"
            lines.append(f"  {place}{share}")
            lines += [f"    {line}" for line in sample.odd or ("nothing odd: every number in the range of the rest",)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _head(self) -> str:
        if not self.samples:
            return "samples: none could be named"
        runs = f"({self.num_runs} runs)"
        if self.samples[0].share is not None:
            return f"samples: the largest shares among {self.size} {runs}"
        if self.together:
            return f"samples: {len(self.samples)} of {self.size} together make the step non-finite, no fewer do {runs}"
        verb = "makes" if len(self.samples) == 1 else "each make"
        return f"samples: {len(self.samples)} of {self.size} {verb} the step non-finite {runs}"


def find_samples(runner: StepRunner, batches: Sequence[MicroBatch]) -> SampleReport:
    """Finds the smallest set of samples that makes a step non-finite; of a finite step those of largest gradients.

    The batch keeps its size: samples that are left out are replaced by a harmless one, so that each stays in its row,
    meets the same random numbers, and has company where the model needs it. By halving, one bad sample among n takes
    about 2 log2(n) steps.

    Args:
        runner: the step.
        batches: those of the step.
    """
    outcomes = [runner.run([micro]) for micro in batches]
    bad = [index for index, outcome in enumerate(outcomes) if _is_bad(outcome)]
    searched = bad or [max(range(len(batches)), key=lambda index: _norm(outcomes[index].gradients))]
    reports = [_Search(runner, batches[i], i).find(outcomes[i], finite=not bad) for i in searched]
    first = reports[0]
    return replace(
        first,
        samples=tuple(sample for report in reports for sample in report.samples),
        num_runs=len(batches) + sum(report.num_runs for report in reports),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        together=all(report.together for report in reports),
    )


class _Search:
    """The search in one batch."""

    def __init__(self, runner: StepRunner, micro: MicroBatch, position: int) -> None:
        self._runner = runner
        self._micro = micro
        self._position = position
        self._rows = Rows(micro.batch)
        self._filler = 0
        self._num_runs = 0
        self._notes = _notes_on(runner.module)

    def find(self, whole: Outcome, *, finite: bool) -> SampleReport:
        if self._rows.size < 2:
            return self._report([], notes=["the batch does not show where one sample ends and the next begins"])
        try:
            if finite:
                return self._largest_shares(whole.gradients)
            return self._smallest_set()
        except StepFailed as problem:
            return self._report([], notes=[f"{problem}, when samples of the batch were replaced by others"])

    def _smallest_set(self) -> SampleReport:
        everything = list(range(self._rows.size))
        candidates = _spread(self._rows.size, _FILLERS)
        harmless = next((row for row in candidates if not self._goes_bad([], row)), None)
        if harmless is None:
            why = (
                f"{len(candidates)} of {len(candidates)} samples tried make the step non-finite each by itself: the "
                "fault is not in single samples (look at the parameters, the loss, or what is common to all)"
            )
            return self._report([], notes=[why])
        self._filler = harmless
        alone = self._each_alone(everything, known_bad=True)
        rest = [row for row in everything if row not in set(alone)]
        if not alone:
            return self._report(self._fewest_together(rest), together=True)
        notes = []
        if self._num_runs < _MOST_RUNS and self._goes_bad(rest):
            notes.append("the step is not finite without them either: others do it together")
        return self._report(alone, notes=notes)

    def _each_alone(self, rows: list[int], *, known_bad: bool = False) -> list[int]:
        """Returns those that make the step non-finite by themselves."""
        if self._num_runs >= _MOST_RUNS or not (known_bad or self._goes_bad(rows)):
            return []
        if len(rows) == 1:
            return rows
        left, right = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        return self._each_alone(left) + self._each_alone(right)

    def _fewest_together(self, rows: list[int]) -> list[int]:
        """Returns a set from which none can be left out, by leaving out ever smaller parts (delta debugging)."""
        parts = 2
        while len(rows) > 1 and self._num_runs < _MOST_RUNS:
            size = math.ceil(len(rows) / parts)
            without = [rows[:start] + rows[start + size :] for start in range(0, len(rows), size)]
            smaller = next((fewer for fewer in without if self._goes_bad(fewer)), None)
            if smaller is not None:
                rows, parts = smaller, max(parts - 1, 2)
            elif parts >= len(rows):
                break
            else:
                parts = min(2 * parts, len(rows))
        return rows

    def _largest_shares(self, whole: dict[str, Tensor]) -> SampleReport:
        """Finds the samples that most of the gradient goes back to, by halving the set with the largest share.

        c(S) = g(S) - (1 - |S| / n) g(none): what S contributes to the gradient g, others being replaced by a filler;
        the share is <c, g> / <g, g>. Shares add up to 1 for a loss that is a mean or a sum over samples.
        """
        square = _dot(whole, whole)
        if not square:
            return self._report([], notes=["every gradient is zero"])
        size = self._rows.size
        empty = {row: self._run([], row).gradients for row in _spread(size, 3)}
        self._filler = min(empty, key=lambda row: _norm(empty[row]))
        without = _dot(empty[self._filler], whole)

        def share(rows: list[int]) -> float:
            return (_dot(self._run(rows).gradients, whole) - (1 - len(rows) / size) * without) / square

        order = count()
        heap: list[tuple[float, int, list[int]]] = [(-1.0, next(order), list(range(size)))]
        found: list[tuple[int, float]] = []
        notes = []
        while heap and len(found) < _LARGEST_SHARES and self._num_runs < _MOST_RUNS:
            negative, number, rows = heapq.heappop(heap)
            if -negative < _SMALL_SHARE and found:
                break
            if len(rows) == 1:
                found.append((rows[0], -negative))
                continue
            halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            shares = [share(half) for half in halves]
            if number == 0 and abs(sum(shares) - 1.0) > _ADDS_UP:
                notes.append(
                    f"the shares of two halves add up to {sum(shares):.2f} instead of 1: samples act on each other, or "
                    "are weighted by something else than their number"
                )
            for half, one in zip(halves, shares, strict=True):
                heapq.heappush(heap, (-one, next(order), half))
        if found and found[0][1] < _STANDS_OUT / size:
            notes.append(f"none stands out: an even share would be {1 / size:.1%}")
        return self._report([row for row, _ in found], shares=dict(found), notes=notes)

    def _goes_bad(self, rows: Sequence[int], filler: int | None = None) -> bool:
        return _is_bad(self._run(rows, filler))

    def _run(self, rows: Sequence[int], filler: int | None = None) -> Outcome:
        self._num_runs += 1
        batch = self._rows.with_only(rows, self._filler if filler is None else filler)
        return self._runner.run([replace(self._micro, batch=batch)])

    def _report(
        self,
        rows: Sequence[int],
        *,
        together: bool = False,
        shares: dict[int, float] | None = None,
        notes: Sequence[str] = (),
    ) -> SampleReport:
        share: Callable[[int], float | None] = lambda row: None if shares is None else shares[row]  # noqa: E731
        samples = [Sample(self._position, row, share(row), what_is_odd(self._rows, row, set(rows))) for row in rows]
        if self._num_runs >= _MOST_RUNS:
            notes = [*notes, f"the search ended after {self._num_runs} runs: there may be more, or fewer would do"]
        return SampleReport(
            self._rows.size, tuple(samples), together and len(rows) > 1, self._num_runs, (*notes, *self._notes)
        )


def _notes_on(module: nn.Module) -> list[str]:
    """That samples act on each other, where the model says so."""
    mixing = [
        name or "the module"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
    ]
    if not mixing:
        return []
    more = f" and {len(mixing) - 3} more" if len(mixing) > 3 else ""
    return [
        f"batch normalization ({', '.join(mixing[:3])}{more}) mixes samples: what one does depends on those around it"
    ]


def _is_bad(outcome: Outcome) -> bool:
    return not all(map(math.isfinite, outcome.losses)) or bool(outcome.bad_gradients)


def _dot(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """<left, right> over the gradients that both have."""
    products = [(left[n].to_dense().double() * right[n].to_dense().double()).sum() for n in left.keys() & right.keys()]
    return float(torch.stack(products).sum()) if products else 0.0


def _norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(_dot(gradients, gradients))


def _spread(size: int, number: int) -> list[int]:
    """So many row numbers, spread evenly, the ends first."""
    rows = [round(i * (size - 1) / max(1, number - 1)) for i in range(number)]
    return list(dict.fromkeys([rows[0], rows[-1], *rows]))
