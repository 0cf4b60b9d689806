"""Writes records where TensorBoard finds them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from lightning_gradguard.record import Sink, StepRecord
from lightning_gradguard.tensorboard.diagnosis import DiagnosisText
from lightning_gradguard.tensorboard.scalars import scalar_values, to_float32


class TensorBoardSink(Sink):
    """Shows records in TensorBoard: scalars and the diagnosis in words, all of a record in one event.

    A write that fails (full disk, folder gone) costs the record and warns once until a write succeeds again; it never
    ends the training. After a non-finite step everything is flushed, so that a run that dies there is still readable.

    Args:
        writer: a ``SummaryWriter``; or a function that returns the current one, called anew at every write, since
            Lightning closes and reopens its own between fits; or a folder, in which the sink opens its own writer.
            One writer per folder: TensorBoard does not follow two that write at the same time.
        prefix: put before every tag with a ``-``, as Lightning's loggers do with theirs.

    Example:
        >>> sink = TensorBoardSink("runs/first")
        >>> sink = TensorBoardSink(lambda: logger.experiment)  # doctest: +SKIP
    """

    def __init__(
        self, writer: SummaryWriter | Callable[[], SummaryWriter] | str | os.PathLike[str], prefix: str = ""
    ) -> None:
        self._folder = Path(writer) if isinstance(writer, str | os.PathLike) else None
        self._writer = writer
        self._own: SummaryWriter | None = None
        self._tag_prefix = f"{prefix}-" if prefix else ""
        self._diagnosis = DiagnosisText()
        self._failed = False

    def write(self, record: StepRecord) -> None:
        """Writes one record as one event; flushes if the step was not finite."""
        scalars = scalar_values(record)
        values = [
            Summary.Value(tag=self._tag_prefix + tag, simple_value=to_float32(value)) for tag, value in scalars.items()
        ]
        values += self._diagnosis.values(record)
        for value in values[len(scalars) :]:
            value.tag = self._tag_prefix + value.tag
        try:
            writer = self._current_writer()
            self._add(writer, values, record.step)
            if record.cause is not None:
                writer.flush()
            self._failed = False
        except OSError as error:
            self._own = None  # an own writer whose thread has died cannot be used again
            if not self._failed:
                warnings.warn(
                    f"TensorBoard record of step {record.step}, optimizer {record.optimizer}, was not written: {error}. "
                    "Training goes on; records are lost until writing works again.",
                    stacklevel=2,
                )
            self._failed = True

    def close(self) -> None:
        """Closes the sink's own writer; one that was handed in is left to whoever made it."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def _current_writer(self) -> Any:
        if self._folder is None:
            return self._writer() if callable(self._writer) else self._writer
        if self._own is None:
            self._own = SummaryWriter(str(self._folder))
        return self._own

    def _add(self, writer: Any, values: list[Summary.Value], step: int) -> None:
        get_file_writer = getattr(writer, "_get_file_writer", None)
        file_writer = get_file_writer() if get_file_writer else None
        if isinstance(file_writer, FileWriter):
            file_writer.add_summary(Summary(value=values), step)
            return
        for value in values:  # tensorboardX, or the stand-in of a rank that does not log: scalars are what they share
            if value.HasField("simple_value"):
                writer.add_scalar(value.tag, value.simple_value, step)
