"""Every run below a log folder, without a server: from files of records, or from TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from lightning_gradguard.record import StepRecord
from lightning_gradguard.report.names import run_name
from lightning_gradguard.report.picture import Picture, pictures_of, thin
from lightning_gradguard.report.stored import records_of
from lightning_gradguard.sinks import read_jsonl
from lightning_gradguard.tensorboard.event_files import stores_of_event_files
from lightning_gradguard.tensorboard.store import FlowStore


@dataclass(frozen=True)
class LoggedRun:
    """One run as its files have it.

    Attributes:
        name: its path below the log folder.
        records: oldest first, of all its optimizers; from event files, as much of them as those hold.
        pictures: one for each optimizer, by its index.
    """

    name: str
    records: list[StepRecord]
    pictures: list[Picture]


@dataclass(frozen=True)
class Unreadable:
    """A run that could not be read.

    Attributes:
        run: its name.
        reason: why, with the file.
    """

    run: str
    reason: str


def read_runs(path: Path) -> tuple[list[LoggedRun], list[Unreadable]]:
    """Every run in a log folder, or in one JSONL file, by name; and those that could not be read.

    A run that has both event files and our records beside them is read from the records: they are complete and small.

    Args:
        path: the folder or file.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if nothing in it has gradients.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    unreadable: list[Unreadable] = []
    runs = {run.name: run for run in _from_lines(path, unreadable)}
    if path.is_dir():
        runs = {run.name: run for run in _from_events(path, unreadable)} | runs
    if not runs and not unreadable:
        raise ValueError(
            f"{path} has no gradients: no event file or .jsonl file in it was written by lightning_gradguard"
        )
    named = [_renamed(run, path.resolve().name) if run.name == "." else run for run in runs.values()]
    return sorted(named, key=lambda run: run.name), unreadable


def _from_lines(path: Path, unreadable: list[Unreadable]) -> Iterator[LoggedRun]:
    for file in [path] if path.is_file() else sorted(path.rglob("*.jsonl")):
        name = run_name(file, path)
        try:
            records = list(read_jsonl(file))
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable(name, str(error)))
            continue
        if records:
            yield LoggedRun(name, records, pictures_of(records, name))


def _from_events(folder: Path, unreadable: list[Unreadable]) -> Iterator[LoggedRun]:
    left_out: list[str] = []
    stores = sorted(stores_of_event_files(folder, left_out), key=lambda entry: entry[1:])
    for name, own in groupby(stores, key=lambda entry: entry[1]):
        of_run = list(own)
        try:
            yield LoggedRun(name, records_of(of_run), [_stored_picture(*entry) for entry in of_run])
        except ValueError as error:
            unreadable.append(Unreadable(name, str(error)))
    for reason in left_out:
        name, _, _ = reason.removeprefix("run '").partition(" ")
        unreadable.append(Unreadable(name.rstrip("':"), reason))


def _stored_picture(store: FlowStore, run: str, optimizer: int) -> Picture:
    flow, events = store.flow(run, optimizer), store.events(run, optimizer)
    return Picture(run, optimizer, thin(flow), events, series=store.norms(run, optimizer))


def _renamed(run: LoggedRun, name: str) -> LoggedRun:
    return LoggedRun(name, run.records, [replace(picture, run=name) for picture in run.pictures])
