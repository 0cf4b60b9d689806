"""The total norm of every step of a run, put together from what its records hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.record import StepRecord


@dataclass(frozen=True, eq=False)
class Piece:
    """The norms that one record brings.

    Attributes:
        step: of the record, which is that of the last norm.
        norms: oldest first, float32.
        steps_per_norm: how many steps each stands for.
    """

    step: int
    norms: NDArray[np.float32]
    steps_per_norm: int = 1


@dataclass(frozen=True, eq=False)
class Series:
    """The total norms of one optimizer over a run, before clipping.

    Attributes:
        steps: on the axis of the records, int64 ``[n]``, not decreasing.
        norms: float32 ``[n]``; NaN and infinity as they were.
        steps_per_norm: how many steps a norm stands for at most: 1 for a run whose every step is here.
        unknown: how many steps of the records are not here, those of an older version of the library.
    """

    steps: NDArray[np.int64]
    norms: NDArray[np.float32]
    steps_per_norm: int = 1
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.norms)


def series_by_optimizer(records: Iterable[StepRecord]) -> dict[int, Series]:
    """Returns the norms of each optimizer that the records speak of.

    Args:
        records: of one run, in the order in which they were made.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> records = [quiet_record(3, total_norms=(1.0, 2.0, 4.0)), quiet_record(5, total_norms=(3.0, 5.0))]
        >>> series = series_by_optimizer(records)[0]
        >>> series.steps.tolist(), series.norms.tolist()
        ([1, 2, 3, 4, 5], [1.0, 2.0, 4.0, 3.0, 5.0])
    """
    pieces: dict[int, list[Piece]] = {}
    unknown: dict[int, int] = {}
    for record in records:
        own = pieces.setdefault(record.optimizer, [])
        if record.total_norms:
            own.append(Piece(record.step, np.array(record.total_norms, dtype=np.float32), record.steps_per_norm))
        else:
            unknown[record.optimizer] = unknown.get(record.optimizer, 0) + record.num_steps
    return {optimizer: join(own, unknown.get(optimizer, 0)) for optimizer, own in sorted(pieces.items())}


def join(pieces: Iterable[Piece], unknown: int = 0) -> Series:
    """Puts pieces together to a series with a step for each norm.

    Where steps go back, training was taken up again from an earlier checkpoint: what was written of the attempt that
    was given up, from there on, goes. The last norm of a piece is that of its step, and those before it lie evenly
    between it and the piece before: every step of a run in which each batch steps, every fifth batch of a critic.

    Args:
        pieces: in the order in which they were written.
        unknown: see :class:`Series`.
    """
    kept: list[Piece] = []
    for piece in pieces:
        while kept and kept[-1].step > piece.step:
            kept.pop()
        if kept and kept[-1].step == piece.step and len(kept[-1].norms) <= len(piece.norms):
            kept.pop()  # the same steps once more; a shorter one is a bad step of the same batch
        kept.append(piece)
    if not kept:
        return Series(np.zeros(0, np.int64), np.zeros(0, np.float32), unknown=unknown)
    before = [None, *(piece.step for piece in kept[:-1])]
    steps = [_steps_of(piece, last) for piece, last in zip(kept, before, strict=True)]
    norms = np.concatenate([piece.norms for piece in kept])
    return Series(np.concatenate(steps), norms, max(piece.steps_per_norm for piece in kept), unknown)


def _steps_of(piece: Piece, before: int | None) -> NDArray[np.int64]:
    count = len(piece.norms)
    first = piece.step - count * piece.steps_per_norm if before is None else before
    places = np.arange(1, count + 1) / count
    return np.rint(first + (piece.step - first) * places).astype(np.int64)


def outline(series: Series, places: int) -> NDArray[np.int64]:
    """Returns where the curve is to be drawn in few points: at the smallest and the largest norm of so many parts.

    What is not finite is left out.

    Args:
        series: the whole curve.
        places: at most twice as many points come back.
    """
    finite = np.flatnonzero(np.isfinite(series.norms))
    if len(finite) <= 2 * places:
        return finite
    kept: list[int] = []
    for part in np.array_split(finite, places):
        norms = series.norms[part]
        kept += sorted({int(part[norms.argmin()]), int(part[norms.argmax()])})
    return np.array(kept, dtype=np.int64)


def pieces_of(entries: Sequence[tuple[int, NDArray[np.float32]]]) -> list[Piece]:
    """Returns pieces from vectors as they are stored: how many steps a norm stands for, then the norms."""
    return [Piece(step, vector[1:], int(vector[0])) for step, vector in entries if len(vector) > 1]
