"""Every run below a log folder, as records."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from lightning_gradguard.report.offline import Unreadable, run_name
from lightning_gradguard.report.run import Run
from lightning_gradguard.report.stored import records_of
from lightning_gradguard.sinks import read_jsonl
from lightning_gradguard.tensorboard.event_files import stores_of_event_files


def read_runs(path: Path) -> tuple[list[Run], list[Unreadable]]:
    """Every run in a log folder, or in one JSONL file, by name; and those that could not be read.

    A run that has both event files and our records beside them is read from the records.

    Args:
        path: the folder or file.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if nothing in it has gradients.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    runs: dict[str, Run] = {}
    unreadable: list[Unreadable] = []
    for file in [path] if path.is_file() else sorted(path.rglob("*.jsonl")):
        name = run_name(file, path)
        try:
            runs[name] = Run(list(read_jsonl(file)), name)
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable(name, str(error)))
    if path.is_dir():
        left_out: list[str] = []
        stores = sorted(stores_of_event_files(path, left_out), key=lambda entry: entry[1:])
        for name, own in groupby(stores, key=lambda entry: entry[1]):
            try:
                runs.setdefault(name, Run([], name))
                runs[name] = runs[name] if runs[name].records else Run(records_of(list(own)), name)
            except ValueError as error:
                unreadable.append(Unreadable(name, str(error)))
    found = [run for run in runs.values() if run.records]
    if not found and not unreadable:
        raise ValueError(
            f"{path} has no gradients: no event file or .jsonl file in it was written by lightning_gradguard"
        )
    named = [Run(run.records, path.resolve().name) if run.name == "." else run for run in found]
    return sorted(named, key=lambda run: run.name), unreadable
