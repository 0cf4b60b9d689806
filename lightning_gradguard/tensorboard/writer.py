"""A way to TensorBoard that survives what happens to writers: closed, opened again, on a full disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from lightning_gradguard.record import StepRecord
from lightning_gradguard.tensorboard.checksum import quicken

WriterLike = SummaryWriter | Callable[[], SummaryWriter] | str | os.PathLike[str]


class BoardWriter:
    """The writer of a run, fetched anew whenever something is written.

    Args:
        writer: a ``SummaryWriter``, a function that returns the current one, or a folder to open one in.
    """

    def __init__(self, writer: WriterLike) -> None:
        self._folder = Path(writer) if isinstance(writer, str | os.PathLike) else None
        self._writer = writer
        self._own: SummaryWriter | None = None
        self._failed = False

    def __str__(self) -> str:
        return repr(str(self._folder)) if self._folder is not None else type(self._writer).__name__

    def current(self) -> Any:
        """Returns the writer in use now."""
        if self._folder is None:
            return self._writer() if callable(self._writer) else self._writer
        if self._own is None:
            self._own = SummaryWriter(str(self._folder))
        return self._own

    def file_writer(self) -> FileWriter | None:
        """Returns what takes whole events; ``None`` where the writer has no such thing."""
        get_file_writer = getattr(self.current(), "_get_file_writer", None)
        file_writer = get_file_writer() if get_file_writer else None
        return file_writer if isinstance(file_writer, FileWriter) else None

    def add(self, summary: Summary, step: int) -> None:
        """Writes a summary as one event."""
        file_writer = self.file_writer()
        if file_writer is not None:
            quicken(file_writer)
            file_writer.add_summary(summary, step)
            return
        for (
            value
        ) in summary.value:  # tensorboardX, or the stand-in of a rank that does not log: scalars are what they share
            if value.HasField("simple_value"):
                self.current().add_scalar(value.tag, value.simple_value, step)

    def attempt(self, record: StepRecord, write: Callable[[], None]) -> bool:
        """Writes, or says once what is lost. TensorBoard writes in a thread: an error shows at a later record."""
        try:
            write()
            self._failed = False
        except OSError as error:
            self._own = None  # an own writer whose thread has died cannot be used again
            if not self._failed:
                warnings.warn(
                    f"TensorBoard records are lost, noticed at step {record.step} (optimizer {record.optimizer}): "
                    f"{error}. Training goes on, and writing is tried again with every record.",
                    stacklevel=3,
                )
            self._failed = True
        return not self._failed

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy holds: it opens a writer of its own when it has something to write."""
        return {**self.__dict__, "_own": None}

    def close(self, record: StepRecord | None) -> None:
        """Closes a writer of our own; ``record`` is the last, for the warning if that fails."""
        if self._own is not None and record is not None:
            self.attempt(record, self._own.close)
        self._own = None
