"""What a run says of itself: through Lightning's own logging, with a progress bar or without, logger or none."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_gradguard.guard.guard import NonFiniteGradientError
from lightning_gradguard.record import Severity

# Below Lightning's own, so that whoever quiets or redirects Lightning does the same to us.
log = logging.getLogger("lightning.pytorch.gradguard")


def say(severity: Severity, text: str) -> None:
    """Hands a text to Lightning's logging: a warning for a finding to act upon, else an information."""
    # A progress bar leaves the cursor at the end of its line.
    log.log(logging.INFO if severity == "info" else logging.WARNING, "\n%s", text)


def width() -> int:
    """Characters in a line: those of the terminal where there is one, 80 in files and pipes."""
    return max(60, min(shutil.get_terminal_size().columns, 120))


def how_it_ended(trainer: pl.Trainer, exception: BaseException | None, *, stopped: bool) -> str:
    """How a fit ended, in words.

    Args:
        trainer: whose fit it was.
        exception: what ended it; ``None`` if it came to its end.
        stopped: whether our guard asked for the end.
    """
    if isinstance(exception, KeyboardInterrupt):
        return "interrupted"
    if isinstance(exception, SIGTERMException):
        return "ended by SIGTERM"
    if isinstance(exception, NonFiniteGradientError):
        return f"stopped by the guard ({type(exception).__name__})"
    if exception is not None:
        return f"ended by {type(exception).__name__}"
    if stopped:
        return "stopped by the guard"
    return "stopped early" if trainer.should_stop else "done"


def what_next(records: Path | None, board: Path | None, bundles: Sequence[Path]) -> list[str]:
    """The lines that tell where things are: what was saved, and what to type to see more of it.

    Args:
        records: what to report on, if records are written: a file, or the folder of a run.
        board: the log folder of TensorBoard, if there is one.
        bundles: the incidents that were saved.
    """
    lines = []
    if bundles:
        more = f" and {len(bundles) - 1} more" if len(bundles) > 1 else ""
        lines.append(f"Saved: {short(bundles[0])}{more}")
        lines.append(f"Replay: gradguard replay {shlex.quote(short(bundles[0]))} --module my.module:factory")
    if records is not None:
        lines.append(f"Report: gradguard report {shlex.quote(short(records))}")
    if board is not None:
        lines.append(f"Picture: tensorboard --logdir {shlex.quote(short(board))}")
    return lines


def short(path: Path) -> str:
    """A path as one would type it: from the working folder, if it lies in it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
