"""Writes records where TensorBoard finds them."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from lightning_gradguard.record import LastWeights, StepRecord
from lightning_gradguard.sinks import Sink
from lightning_gradguard.tensorboard.diagnosis import DiagnosisText
from lightning_gradguard.tensorboard.events import EVENTS_VERSION, EventLog
from lightning_gradguard.tensorboard.flow import (
    flow_matrix,
    flow_metadata,
    layout_hash,
    norms_metadata,
    norms_vector,
)
from lightning_gradguard.tensorboard.protos import matrix_value, plugin_metadata, string_value
from lightning_gradguard.tensorboard.scalars import as_float32, scalar_values
from lightning_gradguard.tensorboard.writer import BoardWriter, WriterLike

# TensorBoard keeps a random sample of a tag's records once there are more than 1,000. Those at which something happened
# are written under a second tag too, so few that it keeps them all.
_MAX_NOTABLE = 500
# The total norms of all steps are to be read back to the last: after so many records they go on under a new tag.
_NORMS_PER_TAG = 500


class TensorBoardSink(Sink):
    """Shows records in TensorBoard: scalars, the *Gradient flow* tab, and the diagnosis in words.

    All of a record goes into one event. Weight norms that it lacks are the last known ones. A write that fails (full
    disk, folder gone) costs the record and warns once; it never ends the training, whoever's the writer is. After a
    non-finite step everything is flushed, so that a run that dies there is still readable.

    Args:
        writer: a ``SummaryWriter``; or a function that returns the current one, called anew at every write, since
            Lightning closes and reopens its own between fits; or a folder, in which the sink opens its own writer.
            One writer per folder: TensorBoard does not follow two that write at the same time.
        prefix: put before every tag with a ``-``, as Lightning's loggers do with theirs.

    Example:
        >>> sink = TensorBoardSink("runs/first")
        >>> sink = TensorBoardSink(lambda: logger.experiment)  # doctest: +SKIP
    """

    def __init__(self, writer: WriterLike, prefix: str = "") -> None:
        self._board = BoardWriter(writer)
        self._tag_prefix = f"{prefix}-" if prefix else ""
        self._diagnosis = DiagnosisText()
        self._events: dict[int, EventLog] = {}
        self._described: set[str] = set()
        self._file_writer: Callable[[], object | None] = _none
        self._last: dict[int, StepRecord] = {}
        self._num_notable = 0
        self._norms: dict[int, tuple[int, int]] = {}  # by optimizer: the step its tag begins at, and records under it
        self._weights = LastWeights()

    def __repr__(self) -> str:
        return f"TensorBoardSink({self._board}, prefix={self._tag_prefix.removesuffix('-')!r})"

    def write(self, record: StepRecord) -> None:
        """Writes one record as one event; flushes if the step was not finite."""
        events = self._events.setdefault(record.optimizer, EventLog())
        is_notable = events.observe(record)
        self._last[record.optimizer] = record = self._weights.fill(record)
        if self._board.has_lost:  # and perhaps what described its tags
            self._described.clear()
        if not self._board.attempt(record, partial(self._write, record, events, is_notable)):
            self._described.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file_writer": _none}

    def close(self) -> None:
        """Writes what is left, and closes the sink's own writer; one that was handed in is left to who made it."""
        for optimizer, events in self._events.items():
            if events.has_unwritten:
                record = self._last[optimizer]
                summary = Summary(value=[self._events_value(record, events)])
                self._board.attempt(record, partial(self._board.add, summary, record.step))
        self._board.close(max(self._last.values(), key=lambda record: record.step, default=None))

    def _write(self, record: StepRecord, events: EventLog, is_notable: bool) -> None:
        file_writer = self._board.file_writer()
        if self._file_writer() is not file_writer:  # a new file knows nothing of the one before
            self._described.clear()
            self._file_writer = weakref.ref(file_writer) if file_writer is not None else _none
        summary = Summary()  # filled in place: a list of values would be copied into it
        values, scalars = summary.value, scalar_values(record)
        numbers = as_float32(np.array(list(scalars.values()), dtype=np.float64)).tolist()
        for tag, number in zip(scalars, numbers, strict=True):
            values.add(tag=self._tag_prefix + tag, simple_value=number)
        if record.layers:
            values.append(self._flow_value(record, "flow"))
        if record.layers and is_notable and self._num_notable < _MAX_NOTABLE:
            self._num_notable += 1
            values.append(self._flow_value(record, "flow_notable"))
        if record.total_norms:
            values.append(self._norms_value(record))
        if events.is_due:
            values.append(self._events_value(record, events))
        for value in self._diagnosis.values(record):
            value.tag = self._tag_prefix + value.tag
            values.append(value)
        self._board.add(summary, record.step)
        if record.cause is not None:
            self._board.current().flush()

    def _flow_value(self, record: StepRecord, name: str) -> Summary.Value:
        tag = f"{self._tag_prefix}gradguard/{name}{_suffix(record)}/{layout_hash(record)}"
        metadata = None if tag in self._described else plugin_metadata(flow_metadata(record))
        self._described.add(tag)
        return matrix_value(tag, flow_matrix(record), metadata)

    def _norms_value(self, record: StepRecord) -> Summary.Value:
        start, count = self._norms.get(record.optimizer, (record.step, 0))
        start, count = (record.step, 0) if count == _NORMS_PER_TAG else (start, count)
        self._norms[record.optimizer] = start, count + 1
        tag = f"{self._tag_prefix}gradguard/norms{_suffix(record)}/from_{start}"
        metadata = None if tag in self._described else plugin_metadata(norms_metadata(record))
        self._described.add(tag)
        return matrix_value(tag, norms_vector(record), metadata)

    def _events_value(self, record: StepRecord, events: EventLog) -> Summary.Value:
        content = json.dumps({"version": EVENTS_VERSION, "kind": "events", "optimizer": record.optimizer}).encode()
        tag = f"{self._tag_prefix}gradguard/events{_suffix(record)}"
        return string_value(tag, events.to_json(), plugin_metadata(content))


def _none() -> None:
    """Returns what is known of a file that nothing was written to."""


def _suffix(record: StepRecord) -> str:
    return f"/opt{record.optimizer}" if record.num_optimizers > 1 else ""
