"""Reads the pictures of runs without a server: from event files, or from JSONL files of records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradguard.record import LastWeights, StepRecord
from lightning_gradguard.sinks import read_jsonl
from lightning_gradguard.tensorboard.event_files import stores_of_event_files
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
    """

    run: str
    optimizer: int
    flow: Flow
    events: dict[str, Any]


def read_pictures(path: Path, left_out: list[str] | None = None) -> list[Picture]:
    """Every run in a log folder, or in one JSONL file, by name.

    Args:
        path: the folder or file.
        left_out: gets a line for each file and run in a folder that cannot be read; the others are, all the same.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if nothing in it has gradients, with what could not be read; or for a broken line of the one JSONL
            file, with its number.
    """
    left_out = [] if left_out is None else left_out
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    pictures = (
        [*_from_jsonl(path)]
        if path.is_file()
        else [
            *_from_events(path, left_out),
            *_from_folder_of_jsonl(path, left_out),
        ]
    )
    if not pictures:
        raise ValueError(
            f"{path} has no gradients: no event file or .jsonl file in it was written by lightning_gradguard"
            + "".join(f"; {reason}" for reason in left_out)
        )
    return sorted(pictures, key=lambda picture: (picture.run, picture.optimizer))


def thin(flow: Flow, limit: int = MAX_COLUMNS) -> Flow:
    """Returns the same picture in at most ``limit`` columns; neighbours are folded, so that the worst of each shows."""
    if len(flow.steps) <= limit:
        return flow
    groups = np.array_split(np.arange(len(flow.steps)), limit)
    last = [group[-1] for group in groups]
    matrices = np.stack([reduce(fold, flow.matrices[group]) for group in groups])
    return replace(flow, steps=flow.steps[last], wall_times=flow.wall_times[last], matrices=matrices)


def _from_events(folder: Path, left_out: list[str]) -> Iterator[Picture]:
    for store, run, optimizer in stores_of_event_files(folder, left_out):
        try:
            yield Picture(run, optimizer, thin(store.flow(run, optimizer)), store.events(run, optimizer))
        except ValueError as error:
            left_out.append(str(error))


def _from_folder_of_jsonl(folder: Path, left_out: list[str]) -> Iterator[Picture]:
    for path in sorted(folder.rglob("*.jsonl")):
        try:
            pictures = list(_from_jsonl(path))
        except (ValueError, OSError) as error:
            left_out.append(str(error))
            continue
        for picture in pictures:
            yield replace(picture, run=str(path.relative_to(folder).with_suffix("")))


def _from_jsonl(path: Path) -> Iterator[Picture]:
    by_optimizer: dict[int, _Collector] = {}
    for record in read_jsonl(path):
        by_optimizer.setdefault(record.optimizer, _Collector()).add(record)
    for optimizer, collector in by_optimizer.items():
        if collector.layouts:
            yield Picture(path.stem, optimizer, thin(collector.flow()), collector.events())


class _Collector:
    """The records of one optimizer on their way to a picture."""

    def __init__(self) -> None:
        self.layouts: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._columns: list[tuple[dict[str, Any], Column]] = []
        self._log = EventLog()
        self._weights = LastWeights()

    def add(self, record: StepRecord) -> None:
        self._log.observe(record)
        if not record.layers:
            return
        layout = self.layouts.setdefault((record.layers, record.depth), layout_of(record))
        time = float(len(self._columns))  # records have no clock; their order is what counts
        self._columns.append((layout, Column(record.step, time, flow_matrix(self._weights.fill(record)))))

    def flow(self) -> Flow:
        return flow_of(list(self.layouts.values()), self._columns)

    def events(self) -> dict[str, Any]:
        return merge_events([self._log.content()])
