"""Hands each record to every view of a run, of which none can end it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import final

from lightning_gradguard.harmless.part import Part, is_ours
from lightning_gradguard.record import StepRecord
from lightning_gradguard.sinks import Sink


@final
class Views(Sink):
    """Several sinks as one that never fails: one that raises gets no more records, and the others go on.

    Args:
        sinks: in the order in which they get each record.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = [(sink, _part_of(sink)) for sink in sinks]
        self._is_open = True

    def write(self, record: StepRecord) -> None:
        """Hands a record to each of them."""
        for sink, part in self._sinks:
            part.run(sink.write, record)

    def close(self) -> None:
        """Ends each of them; one that failed too, which may hold a file open, but of that one nothing more is said.

        A second call does nothing.
        """
        sinks, self._is_open = self._sinks if self._is_open else [], False
        for sink, part in sinks:
            if part.gone:
                with suppress(Exception):
                    sink.close()
            else:
                part.run(sink.close)


def _part_of(sink: Sink) -> Part:
    return Part(f"the view {type(sink).__name__}", "it gets no more records", foreign=not is_ours(sink))
