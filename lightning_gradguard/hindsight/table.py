"""A table over policies, for each optimizer of a run."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.clip.quantile import QuantileClip
from lightning_gradguard.clip.zclip import ZClip
from lightning_gradguard.hindsight.advice import Advice, advise
from lightning_gradguard.hindsight.notation import read_policy, written
from lightning_gradguard.hindsight.outcome import Outcome, Rise, find_rise, outcome_of, share_above, thresholds
from lightning_gradguard.hindsight.series import Series, series_by_optimizer
from lightning_gradguard.record import StepRecord

_HEAD = ("policy", "clipped", "median", "smallest", "let through", "recovers in", "hardest clips at steps")
_WIDTH = 110


@dataclass(frozen=True, eq=False)
class OneOptimizer:
    """What policies would have done to one optimizer of a run.

    Attributes:
        optimizer: its index.
        series: the norms.
        was_clipped: whether the run was clipped, so that another clip would have led to other norms.
        advice: the recommendation.
        thresholds: by share of the steps the ceiling of ``NormClip`` that would have clipped it.
        above_one: share of the steps that ``NormClip(1.0)`` would have clipped.
        rise: what the recovery is measured at.
        outcomes: a row for each policy.
    """

    optimizer: int
    series: Series
    was_clipped: bool
    advice: Advice
    thresholds: dict[float, float]
    above_one: float
    rise: Rise
    outcomes: tuple[Outcome, ...]

    def lines(self, *, short: bool = False) -> tuple[list[str], list[str]]:
        """Returns what is said before the table, and after it; a short one does not explain the columns."""
        norms = self.series.norms
        finite = norms[np.isfinite(norms)]
        lost = len(norms) - len(finite)
        about = f"{len(norms):,} steps, norm {np.median(finite):.3g} in the median, {finite.max():.3g} at most"
        before = [about + (f", {lost:,} not finite" if lost else "")]
        before += _notes(self.series, self.was_clipped)
        by_share = ", ".join(f"{share:.1%} of the steps: {value:.3g}" for share, value in self.thresholds.items())
        after = [f"NormClip would clip, by its ceiling: {by_share}. NormClip(1.0) clips {self.above_one:.1%}."]
        columns = (
            "Shares are of the steps after the first 5 %; median: coefficient of the clipped ones; recovers: steps "
            f"until {self.rise} is clipped no harder than what came before."
        )
        return before, [*after, *([] if short else [columns]), f"Recommended: {self.advice}"]

    def as_json(self) -> dict[str, Any]:
        """Returns all of it as plain values, without the series."""
        return {
            "optimizer": self.optimizer,
            "steps": len(self.series),
            "steps_per_norm": self.series.steps_per_norm,
            "was_clipped": self.was_clipped,
            "recommended": vars(self.advice),
            "thresholds": {f"{share:g}": value for share, value in self.thresholds.items()},
            "above_one": self.above_one,
            "rise": vars(self.rise),
            "policies": [outcome.as_json() for outcome in self.outcomes],
        }


@final
class WhatIf:
    """What clipping policies would have done to a run, as text, as HTML in a notebook, and as rows.

    Attributes:
        name: of the run.
        optimizers: one entry for each.
    """

    def __init__(self, name: str, optimizers: Sequence[OneOptimizer]) -> None:
        self.name = name
        self.optimizers = tuple(optimizers)

    def __repr__(self) -> str:
        return f"WhatIf({self.name!r}, {len(self.optimizers)} optimizers)"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return "".join(self._html(each) for each in self.optimizers)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each policy and optimizer, for a table of pandas, say."""
        return [
            {"optimizer": each.optimizer, **outcome.as_json()} for each in self.optimizers for outcome in each.outcomes
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {"run": self.name, "optimizers": [each.as_json() for each in self.optimizers]}

    def text(self, *, short: bool = False) -> str:
        """Returns it for a terminal; a short one does not explain the columns."""
        return "\n\n".join(self._text(each, short) for each in self.optimizers)

    def markdown(self, *, short: bool = False) -> str:
        """Returns it for a pull request; a short one does not explain the columns."""
        return "\n\n".join(self._markdown(each, short) for each in self.optimizers) + "\n"

    def _title(self, each: OneOptimizer) -> str:
        return self.name if len(self.optimizers) == 1 else f"{self.name}, optimizer {each.optimizer}"

    def _text(self, each: OneOptimizer, short: bool) -> str:
        before, after = each.lines(short=short)
        rows = [_HEAD, *map(_cells, each.outcomes)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        table = ["  " + "  ".join(map(_aligned, row, widths, range(len(_HEAD)))) for row in rows]
        said = [f"{self._title(each)}: {before[0]}", *before[1:]]
        return "\n".join([*map(_wrapped, said), *(line.rstrip() for line in table), *map(_wrapped, after)])

    def _markdown(self, each: OneOptimizer, short: bool) -> str:
        before, after = each.lines(short=short)
        rows = [_HEAD, ("---", *["---:"] * 5, "---"), *map(_cells, each.outcomes)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return "\n\n".join([f"### What if: {self._title(each)}", *before, table, *after])

    def _html(self, each: OneOptimizer) -> str:
        before, after = ([f"<p>{html.escape(line)}</p>" for line in lines] for lines in each.lines())
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEAD)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(outcome)) for outcome in each.outcomes)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        title = f"<p><b>{html.escape(self._title(each))}</b></p>"
        return "".join([title, *before, f"<table><tr>{head}</tr>{body}</table>", *after])


def whatif(
    records: Iterable[StepRecord], policies: Sequence[ClipPolicy | str] | None = None, *, name: str = "run"
) -> WhatIf:
    """Returns what clipping policies would have done to a run that is over.

    The real policies are run over the total norms of all its steps, as they were before clipping. They answer as they
    would have in that run, watching, to the bit of a float32 (on the CPU, with gradients of float32). A policy that
    acts changes the steps after it: a run that was clipped, or would be, leads to other norms than this one's.

    Args:
        records: of the run, oldest first, of one optimizer or of several, such as ``read_run(folder).records``.
        policies: beside the usual ones; objects, or texts such as ``"ZClip(z=3.0)"``. They go by the total norm.
        name: of the run.

    Raises:
        ValueError: if the records hold no norms, a policy needs more than them, or a text is no policy; one line.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> norms = (1.0, 1.1, 0.9, 1.0, 1.0, 50.0, 1.0, 1.2, 0.9, 1.0) * 4
        >>> table = whatif([quiet_record(39, num_steps=40, total_norms=norms)], ["NormClip(5.0)"])
        >>> row = table.rows()[-1]
        >>> row["policy"], round(row["clipped"], 3), row["largest"]
        ('NormClip(max_norm=5.0)', 0.105, 5.0)
    """
    records = list(records)
    asked = [read_policy(policy) if isinstance(policy, str) else policy for policy in policies or ()]
    series = {index: own for index, own in series_by_optimizer(records).items() if np.isfinite(own.norms).any()}
    if not series:
        raise ValueError(f"{name} has no total norms of its steps: its records are of an older version, or of no step")
    each = {index: [record for record in records if record.optimizer == index] for index in series}
    return WhatIf(name, [_of_optimizer(index, series[index], each[index], asked) for index in series])


def _of_optimizer(
    index: int, series: Series, records: Sequence[StepRecord], asked: Sequence[ClipPolicy]
) -> OneOptimizer:
    advice, rise = advise(series, records), find_rise(series)
    policies: list[ClipPolicy] = [NormClip(1.0), ZClip(), AutoClip(), QuantileClip()]
    if advice.policy is not None and advice.kind != "layers":  # what AGC needs is not in records
        policies.append(read_policy(advice.policy))
    distinct = {written(policy): policy for policy in [*policies, *asked]}
    return OneOptimizer(
        optimizer=index,
        series=series,
        was_clipped=was_clipped(records),
        advice=advice,
        thresholds=thresholds(series.norms),
        above_one=share_above(series.norms, 1.0),
        rise=rise,
        outcomes=tuple(outcome_of(policy, series, rise) for policy in distinct.values()),
    )


def was_clipped(records: Iterable[StepRecord]) -> bool:
    """Tells whether a clip, ours or the Trainer's, has changed any step of a run."""
    return any(
        (record.num_clipped > 0 and not record.dry_run)
        or (record.clip_outside is not None and record.max_total_norm > record.clip_outside)
        for record in records
    )


def _notes(series: Series, was_clipped: bool) -> list[str]:
    notes = []
    if was_clipped:
        notes.append(
            "This run was clipped. The norms are those before clipping, but of the path that its clip has led to: "
            "another clip would have led elsewhere."
        )
    if series.steps_per_norm > 1:
        notes.append(
            f"A norm stands for up to {series.steps_per_norm} steps, the largest of them: the file of records is "
            "folded. Shares are too high, and policies see fewer steps than there were."
        )
    if series.unknown:
        notes.append(f"The norms of {series.unknown:,} steps are not known: records of an older version.")
    return notes


def _cells(outcome: Outcome) -> tuple[str, ...]:
    recovers = "never" if outcome.recovers is None else f"{outcome.recovers:,} steps"
    hardest = " ".join(map(str, outcome.hardest)) or "-"
    numbers = (f"{outcome.clipped:.1%}", f"{outcome.median:.3g}", f"{outcome.smallest:.3g}", f"{outcome.largest:.3g}")
    return (outcome.policy, *numbers, recovers, hardest)


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, len(_HEAD) - 1) else cell.rjust(width)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
