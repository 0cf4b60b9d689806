"""A way to TensorBoard that survives what happens to writers: closed, opened again, on a full disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from lightning_gradguard.harmless.part import tell
from lightning_gradguard.record import StepRecord
from lightning_gradguard.tensorboard.checksum import quicken
from lightning_gradguard.tensorboard.own_event import Outcome, add_event

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
        self._told = False
        self._outcome = Outcome()

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
            add_event(file_writer, summary, step, self._outcome)
            return
        # tensorboardX, or the stand-in of a rank that does not log: scalars are what they share.
        for value in summary.value:
            if value.HasField("simple_value"):
                self.current().add_scalar(value.tag, value.simple_value, step)

    @property
    def has_lost(self) -> bool:
        """Tells whether the last record that TensorBoard's thread has come to is not in the file."""
        return self._outcome.error is not None

    def attempt(self, record: StepRecord, write: Callable[[], None]) -> bool:
        """Writes, or says once what is lost. TensorBoard writes in a thread: an error shows at a later record."""
        lost = self._outcome.error
        if isinstance(lost, FileNotFoundError):  # the folder is gone: an own writer makes it anew
            self._leave_own()
        try:
            write()
        except OSError as error:
            lost = error
            self._leave_own()
        self._tell_once(lost, record)
        return lost is None

    def _tell_once(self, lost: Exception | None, record: StepRecord) -> None:
        if lost is not None and not self._told:
            self._told = True
            tell(
                f"TensorBoard records are lost, noticed at step {record.step} (optimizer {record.optimizer}): "
                f"{lost}. Training goes on, and writing is tried again with every record."
            )

    def _leave_own(self) -> None:
        if self._own is not None:
            with suppress(OSError):
                self._own.close()
            self._own, self._outcome = None, Outcome()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy holds: it opens a writer of its own when it has something to write."""
        return {**self.__dict__, "_own": None, "_outcome": Outcome()}

    def close(self, record: StepRecord | None) -> None:
        """Closes a writer of our own, waits for what another one still has to write; ``record`` is the last."""
        if record is None:
            return
        with suppress(OSError):  # of what is not ours: its owner hears of it
            if self._own is not None:
                self._own.close()
            elif self._folder is None:
                self.current().flush()
        self._tell_once(self._outcome.error, record)
        self._own = None
