"""The records of a run on disk, in a file that stays small however long the run is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

from lightning_gradguard.arguments import check_count
from lightning_gradguard.record import StepRecord
from lightning_gradguard.report.files import write_whole
from lightning_gradguard.report.folded import fold, halved, is_quiet
from lightning_gradguard.sinks import JsonlSink, Sink, read_jsonl


@final
class RecordsFile(Sink):
    """Writes records as lines of JSON, as :class:`~lightning_gradguard.JsonlSink` does, in at most ``max_bytes``.

    When the file is full, neighboring records are folded, two and two: counts add up, norms take the largest,
    coefficients the smallest, so that no spike is lost. From then on each line stands for twice as many records.
    A record at which something happened (a step that is not finite, a finding) stays by itself as long as there is
    room, and is written at once; a run that is killed loses the quiet records that wait to be folded, no more.

    Args:
        path: the file; folders are made when the first record comes. An existing file is continued.
        max_bytes: 4 MB by default: some 2,000 records of a model of 12 layers, 20 of one of 1,200.

    Raises:
        ValueError, TypeError: if ``max_bytes`` is no whole number of at least 1.

    Example:
        >>> RecordsFile("run/gradguard.jsonl").max_bytes
        4000000
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 4_000_000) -> None:
        check_count(max_bytes, "max_bytes")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lines = JsonlSink(path)
        self._every = 1  # records that a line stands for
        self._waiting: dict[int, tuple[int, StepRecord]] = {}  # by optimizer: how many were folded, into what

    def write(self, record: StepRecord) -> None:
        """Takes one record in; writes it when it stands for enough of them, or when something happened at it."""
        count, waiting = self._waiting.pop(record.optimizer, (0, None))
        if waiting is not None and (not is_quiet(record) or waiting.layers != record.layers):
            self._append(waiting)
            count, waiting = 0, None
        record = record if waiting is None else fold(waiting, record)
        if is_quiet(record) and count + 1 < self._every:
            self._waiting[record.optimizer] = count + 1, record
        else:
            self._append(record)

    def close(self) -> None:
        """Writes what waits."""
        for optimizer in sorted(self._waiting):
            self._append(self._waiting[optimizer][1])
        self._waiting.clear()

    def _append(self, record: StepRecord) -> None:
        self._lines.write(record)
        if self.path.stat().st_size <= self.max_bytes:
            return
        lines = [one.to_json() for one in halved(read_jsonl(self.path), keep_notable=True)]
        if sum(map(len, lines)) > 0.75 * self.max_bytes:  # there is too much that is worth a line
            lines = [one.to_json() for one in halved(read_jsonl(self.path), keep_notable=False)]
        self._every *= 2
        write_whole(self.path, "".join(f"{line}\n" for line in lines))
