"""Reads the pictures of runs without a server: from event files, or from JSONL files of records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_gradguard.report.picture import Picture, pictures_of, thin
from lightning_gradguard.sinks import read_jsonl
from lightning_gradguard.tensorboard.event_files import stores_of_event_files

# The file that the callbacks write into the log folder of a run; the run is called as its folder.
RECORDS_NAME = "gradguard.jsonl"


@dataclass(frozen=True)
class Unreadable:
    """A run that could not be read.

    Attributes:
        run: its name.
        reason: why, with the file.
    """

    run: str
    reason: str


def read_pictures(path: Path) -> tuple[list[Picture], list[Unreadable]]:
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
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    pictures: list[Picture] = []
    unreadable: list[Unreadable] = []
    for file in files:
        run = run_name(file, path)
        try:
            pictures += pictures_of(read_jsonl(file), run)
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable(run, str(error)))
    if path.is_dir():
        known = {picture.run for picture in pictures}
        pictures += (picture for picture in _from_events(path, unreadable) if picture.run not in known)
    if not pictures and not unreadable:
        raise ValueError(
            f"{path} has no gradients: no event file or .jsonl file in it was written by lightning_gradguard"
        )
    named = [replace(picture, run=path.resolve().name) if picture.run == "." else picture for picture in pictures]
    return sorted(named, key=lambda picture: (picture.run, picture.optimizer)), unreadable


def run_name(file: Path, folder: Path) -> str:
    """What a JSONL file of records is called: by its folder if the callbacks wrote it, else by its own name.

    Example:
        >>> run_name(Path("logs/first/gradguard.jsonl"), Path("logs"))
        'first'
        >>> run_name(Path("logs/second.jsonl"), Path("logs"))
        'second'
    """
    if file == folder:
        return file.resolve().parent.name if file.name == RECORDS_NAME else file.stem
    inside = file.relative_to(folder)
    return str(inside.parent if file.name == RECORDS_NAME else inside.with_suffix(""))


def _from_events(folder: Path, unreadable: list[Unreadable]) -> Iterator[Picture]:
    left_out: list[str] = []
    for store, run, optimizer in stores_of_event_files(folder, left_out):
        try:
            flow, events = store.flow(run, optimizer), store.events(run, optimizer)
            picture = Picture(run, optimizer, flow, events, series=store.norms(run, optimizer))
        except ValueError as error:
            unreadable.append(Unreadable(run, str(error)))
            continue
        yield replace(picture, flow=thin(picture.flow))
    for reason in left_out:
        run, _, _ = reason.removeprefix("run '").partition(" ")
        unreadable.append(Unreadable(run.rstrip("':"), reason))
