"""Which clip each run asks for: the tables of ``whatif``, for ``report``."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradguard.hindsight.advice import Advice, advise
from lightning_gradguard.hindsight.series import Series
from lightning_gradguard.report.runs import LoggedRun

if TYPE_CHECKING:
    from lightning_gradguard.hindsight.table import WhatIf

_ENOUGH = 20  # steps that tell anything of a run
_MOST_STEPS = 10_000  # of all runs together; policies take half a millisecond for each, and a reader waits


@dataclass(frozen=True)
class WhichClip:
    """Which clip one run asks for, and what the usual policies would have done to it.

    Attributes:
        run: its name.
        steps: how many norms it has, of all its optimizers.
        advice: by index of the optimizer.
        table: over policies; ``None`` for a run of more steps than a report has time for.
    """

    run: str
    steps: int
    advice: dict[int, Advice]
    table: WhatIf | None

    def text(self) -> str:
        """Returns it for a terminal."""
        if self.table is not None:
            return self.table.text(short=True)
        return "\n".join([*(f"{name}: {advice}" for name, advice in self._asked()), self._untried()])

    def markdown(self) -> str:
        """Returns it for a pull request: the recommendation, and the table folded away below it."""
        told = self._untried() if self.table is None else self.table.markdown(short=True).rstrip("\n")
        return self._folded("Which clip for <code>{name}</code>? {advice}", f"\n\n{told}\n\n")

    def html(self) -> str:
        """Returns it for the page: the recommendation, which opens on the table."""
        told = f"<p>{html.escape(self._untried())}</p>" if self.table is None else self.table._repr_html_()
        return self._folded("<b>{name}</b>: {advice}", told)

    def as_json(self) -> dict[str, Any]:
        """Returns all of it as plain values; without ``policies`` where none was tried."""
        if self.table is not None:
            return self.table.as_json()
        advised = [{"optimizer": index, "recommended": vars(advice)} for index, advice in self.advice.items()]
        return {"run": self.run, "optimizers": advised, "not_tried": self._untried()}

    def _asked(self) -> Iterator[tuple[str, Advice]]:
        for index, advice in self.advice.items():
            yield f"{self.run}, optimizer {index}" if len(self.advice) > 1 else self.run, advice

    def _folded(self, line: str, told: str) -> str:
        lines = (
            line.format(name=html.escape(name), advice=html.escape(str(a), quote=False)) for name, a in self._asked()
        )
        return f"<details><summary>{'<br>'.join(lines)}</summary>{told}</details>"

    def _untried(self) -> str:
        return f"No policy was tried on its {self.steps:,} steps, which takes a while: `gradguard whatif` does."


def which_clips(runs: Iterable[LoggedRun], most_steps: int = _MOST_STEPS) -> list[WhichClip]:
    """Returns an entry for each run whose steps are known, while there are at least 20 of them.

    Args:
        runs: in the order in which they are told.
        most_steps: on which policies are tried, of all runs together; the runs behind have the recommendation alone.
    """
    found = []
    for run in runs:
        series = {p.optimizer: p.series for p in run.pictures if p.series is not None and _tells(p.series)}
        steps = sum(map(len, series.values()))
        if not series:
            continue
        most_steps -= steps
        found.append(_of_long_run(run, series) if most_steps < 0 else _with_table(run, steps))
    return found


def _tells(series: Series) -> bool:
    return len(series) >= _ENOUGH and bool(np.isfinite(series.norms).any())


def _with_table(run: LoggedRun, steps: int) -> WhichClip:
    from lightning_gradguard.hindsight.table import whatif  # policies need torch, which is slow to import

    table = whatif(run.records, name=run.name)
    return WhichClip(run.name, steps, {each.optimizer: each.advice for each in table.optimizers}, table)


def _of_long_run(run: LoggedRun, series: dict[int, Series]) -> WhichClip:
    of = {index: [record for record in run.records if record.optimizer == index] for index in series}
    advice = {index: advise(own, of[index]) for index, own in series.items()}
    return WhichClip(run.name, sum(map(len, series.values())), advice, None)
