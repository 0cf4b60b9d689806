"""Where records go: memory, a file of lines, or any view that takes them one after the other. It needs no torch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_gradguard.arguments import show_arguments
from lightning_gradguard.record import StepRecord


class Sink(ABC):
    """A view of a run: takes records, one after the other, and nothing else."""

    def __repr__(self) -> str:
        return show_arguments(self)

    @abstractmethod
    def write(self, record: StepRecord) -> None:
        """Shows one record. Called on logged steps and on every step that was not ``ok`` or ``clipped``."""

    def close(self) -> None:  # noqa: B027
        """Ends the view; called once, when training ends in whatever way."""


class MemorySink(Sink):
    """Keeps the last records in a list, for tests, notebooks and rules.

    Args:
        max_records: how many to keep; older ones are dropped. 10,000 is a run of half a million steps
            at the default logging interval.

    Example:
        >>> MemorySink(max_records=100).records
        []
    """

    def __init__(self, max_records: int = 10_000) -> None:
        if max_records < 1:
            raise ValueError(f"max_records must be at least 1, got {max_records}")
        self.max_records = max_records
        self.records: list[StepRecord] = []

    def write(self, record: StepRecord) -> None:
        """Keeps the record; drops the oldest when full."""
        self.records.append(record)
        del self.records[: -self.max_records]


class JsonlSink(Sink):
    """Appends each record as one line of JSON to a file.

    About 60 bytes a layer and record, and some 12 bytes a step for its total norm. Each line is written and flushed
    whole, so a killed run leaves at most one broken line, the last, which :func:`read_jsonl` leaves out and a run that
    continues the file takes away before it writes.

    Args:
        path: the file; folders are made when the first record comes. An existing file is continued (resume).

    Example:
        >>> sink = JsonlSink("run/gradients.jsonl")
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._is_mended = False

    def write(self, record: StepRecord) -> None:
        """Appends one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_mended:
            _end_last_line(self.path)
            self._is_mended = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")


def _end_last_line(path: Path) -> None:
    """Sees to it that the next line begins on its own, where a run was killed in the middle of one.

    The beginning of a record is taken away, being of no use; anything else, a whole record among it, is kept and ended.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        start = _start_of_last_line(file)
        file.seek(start)
        tail = file.read()
        if tail.startswith(_BEGINNING[: len(tail)]) and not _is_record(tail):
            file.truncate(start)
        else:
            file.write(b"\n")


_BEGINNING = b'{"'  # of every record
_BLOCK = 2**16


def _start_of_last_line(file: BinaryIO) -> int:
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        size = min(_BLOCK, position)
        position = file.seek(position - size)
        newline = file.read(size).rfind(b"\n")
        if newline >= 0:
            return position + newline + 1
    return 0


def _is_record(line: bytes) -> bool:
    try:
        return bool(StepRecord.from_json(line.decode()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[StepRecord]:
    """Yields the records of a :class:`JsonlSink` file; a last line cut off by a killed run is left out.

    Raises:
        ValueError: for a broken line elsewhere, with file and line number.
    """
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield StepRecord.from_json(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
