"""The file of a CSVLogger, which our numbers share with the user's: it is written wherever theirs alone could be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_gradguard.callbacks.stand_in import StandIn
from lightning_gradguard.harmless.part import Part


class CsvSaves:
    """Stands around the saves of a ``CSVLogger``: one that fails with our numbers in it is done without them.

    The logger keeps rows until it saves them, at its own time and at the end of the fit. A full disk would end a run
    there that logs less than we do, or nothing at all.

    Args:
        logger: the logger.

    Attributes:
        part: what is taken away where the file could not be written.
    """

    def __init__(self, logger: Any) -> None:
        self.part = Part(f"the file of {type(logger).__name__} with our columns", "it gets no more records")
        self._logger = logger
        self._prefix = f"{logger._prefix}-" if logger._prefix else ""
        self._ours: set[str] = set()
        self._shared = {"step", f"{self._prefix}epoch"}  # the user's rows have them as well
        self._stand_in: StandIn | None = None

    def expect(self, names: Iterable[str]) -> None:
        """Takes note of columns that are ours, and stands around the saves from now on."""
        self._ours |= {self._prefix + name for name in names} - self._shared
        if self._stand_in is None:
            self._stand_in = StandIn(self._logger.experiment, "save", self._save)

    def leave(self) -> None:
        """Saves what waits, and leaves the logger as it was."""
        if self._stand_in is not None:
            with suppress(OSError):  # of the user's own rows: they hear of it when the logger saves them
                self._logger.experiment.save()
            self._stand_in.leave()
            self._stand_in = None

    def _save(self, save: Callable[[], None]) -> None:
        rows = self._logger.experiment
        if self.part.gone or not any(self._ours & row.keys() for row in rows.metrics):
            return save()
        columns, file = list(rows.metrics_keys), _File(Path(rows.metrics_file_path), keep=self._is_rewritten())
        self.part.run(save)
        if self.part.gone:
            file.put_back()
            rows.metrics_keys = columns
            without = [{name: row[name] for name in row if name not in self._ours} for row in rows.metrics]
            rows.metrics = [row for row in without if row.keys() - self._shared]
            save()
        return None

    def _is_rewritten(self) -> bool:
        """Whether the file is to get new columns, for which the logger writes it anew from its beginning."""
        rows = self._logger.experiment
        return any(row.keys() - set(rows.metrics_keys) for row in rows.metrics)


class _File:
    """A file as it was before somebody tried to write to it.

    Args:
        path: of the file; one that is not on a local disk is left alone.
        keep: whether its beginning may be overwritten, too, and not only its end written.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self._path = path
        self._size = path.stat().st_size if path.is_file() else None
        self._content = path.read_bytes() if keep and self._size else None

    def put_back(self) -> None:
        """Makes the file what it was, as far as the disk lets it."""
        with suppress(OSError):
            if self._size is None:
                self._path.unlink(missing_ok=True)
            elif self._content is not None:
                self._path.write_bytes(self._content)
            else:
                os.truncate(self._path, self._size)
