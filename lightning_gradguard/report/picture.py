"""What a run's gradients looked like: layers × steps, and what happened, put together from records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from lightning_gradguard.hindsight.series import Series, series_by_optimizer
from lightning_gradguard.record import LastWeights, StepRecord
from lightning_gradguard.tensorboard.events import EventLog
from lightning_gradguard.tensorboard.flow import flow_matrix, fold, layout_of
from lightning_gradguard.tensorboard.store import Column, Flow, flow_of, merge_events

# As many as a wide screen has room for; more are folded, the worst of each.
MAX_COLUMNS = 800


@dataclass(frozen=True)
class Picture:
    """One optimizer of one run: what the tab shows of it.

    Attributes:
        run: name of the run, its path below the log folder.
        optimizer: index of the optimizer.
        flow: layers × steps, at most :data:`MAX_COLUMNS` columns.
        events: counts, events and findings.
        skipped: steps that moved no weight; ``None`` where it is not known.
        loss: the last one, where it is known.
        series: the total norm of every step, where records hold them.
    """

    run: str
    optimizer: int
    flow: Flow
    events: dict[str, Any]
    skipped: int | None = None
    loss: float | None = None
    series: Series | None = None


def pictures_of(records: Iterable[StepRecord], run: str) -> list[Picture]:
    """One picture for each optimizer that the records speak of, by its index.

    Args:
        records: of one run, in the order in which they were made.
        run: its name.
    """
    by_optimizer: dict[int, _Collector] = {}
    for record in records:
        by_optimizer.setdefault(record.optimizer, _Collector()).add(record)
    return [by_optimizer[optimizer].picture(run, optimizer) for optimizer in sorted(by_optimizer)]


def thin(flow: Flow, limit: int = MAX_COLUMNS) -> Flow:
    """The same picture in at most ``limit`` columns; neighbours are folded, so that the worst of each shows."""
    if len(flow.steps) <= limit:
        return flow
    groups = np.array_split(np.arange(len(flow.steps)), limit)
    last = [group[-1] for group in groups]
    matrices = np.stack([reduce(fold, flow.matrices[group]) for group in groups])
    return replace(flow, steps=flow.steps[last], wall_times=flow.wall_times[last], matrices=matrices)


class _Collector:
    """The records of one optimizer on their way to a picture."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._columns: list[tuple[dict[str, Any], Column]] = []
        self._log = EventLog()
        self._weights = LastWeights()
        self._skipped = 0
        self._loss: float | None = None
        self._records: list[StepRecord] = []

    def add(self, record: StepRecord) -> None:
        self._records.append(record)
        self._log.observe(record)
        layout = self._layouts.setdefault((record.layers, record.depth), layout_of(record))
        time = float(len(self._columns))  # records have no clock; their order is what counts
        self._columns.append((layout, Column(record.step, time, flow_matrix(self._weights.fill(record)))))
        self._skipped = record.skipped_total
        self._loss = self._loss if record.loss is None else record.loss

    def picture(self, run: str, optimizer: int) -> Picture:
        return Picture(
            run=run,
            optimizer=optimizer,
            flow=thin(flow_of(list(self._layouts.values()), self._columns)),
            events=merge_events([self._log.content()]),
            skipped=self._skipped,
            loss=self._loss,
            series=series_by_optimizer(self._records)[optimizer],
        )
