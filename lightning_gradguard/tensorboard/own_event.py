"""Events of ours in an event file that belongs to somebody else: one that cannot be written does them no harm."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from lightning_gradguard.tensorboard.checksum import record_writer_of


class Outcome:
    """What became of the last event of ours that TensorBoard's thread has come to.

    Attributes:
        error: what hindered it; ``None`` where it is in the file.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None


class OwnEvent(bytes):
    """An event on its way to a file through TensorBoard's thread, which no error of it ends.

    An error would end that thread, and be raised again at whatever the owner of the file writes, flushes or closes
    next: a training that logs nothing would end for want of room for our records. An event that was cut off by a full
    disk is taken out of the file again, since nobody reads what follows a broken one.
    """

    outcome: Outcome

    def write_to(self, file: Any, framed: bytes) -> None:
        """Writes the event, or notes why it could not be.

        Args:
            file: TensorBoard's, which opens, appends and closes with every event where the file is on a local disk.
            framed: the event as it stands in the file, with length and checksums.
        """
        is_local = isinstance(getattr(file, "fs", None), LocalFileSystem)
        size = None
        try:
            size = os.path.getsize(file.filename) if is_local else None
            file.write(framed)
            self.outcome.error = None
        except Exception as error:
            self.outcome.error = error
            if size is not None:
                with suppress(OSError):
                    os.truncate(file.filename, size)


def add_event(file_writer: Any, summary: Summary, step: int, outcome: Outcome) -> None:
    """Writes a summary as one event, in TensorBoard's own thread.

    Args:
        file_writer: a ``FileWriter`` of TensorBoard. One that is built otherwise than those we know gets the summary
            by its own method, and keeps its ways with errors.
        summary: what to write.
        step: at which step it is shown.
        outcome: is told what became of it.

    Raises:
        OSError: if an event of the owner's own has failed before, as every write raises from then on.
    """
    if record_writer_of(file_writer) is None:
        file_writer.add_summary(summary, step)
        return
    event = OwnEvent(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
    event.outcome = outcome
    file_writer.event_writer._async_writer.write(event)
