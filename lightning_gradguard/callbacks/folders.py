"""Where a run keeps its things."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger


def run_folder(trainer: pl.Trainer) -> Path | None:
    """The log folder of a run, of its first logger that has one on this machine; ``None`` where nothing is kept.

    TensorBoard's and CSV's own folder; of other loggers the one that ``ModelCheckpoint`` puts its checkpoints in. To
    be called by the first process alone: ``trainer.log_dir`` would wait for the others.
    """
    if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
        return None
    folders = (_folder_of(logger, trainer.default_root_dir) for logger in trainer.loggers)
    return next((folder for folder in folders if folder is not None), None)


def board_folder(trainer: pl.Trainer) -> Path | None:
    """The folder to start TensorBoard on, if there is a logger of its kind."""
    for logger in trainer.loggers:
        if _is_a(logger, "TensorBoardLogger"):
            return _local(logger.save_dir)
    return None


def _folder_of(logger: Logger, root: str) -> Path | None:
    if _is_a(logger, "TensorBoardLogger") or _is_a(logger, "CSVLogger"):
        return _local(logger.log_dir)
    if logger.name is None or logger.version is None:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = _local(logger.save_dir or root)
    return None if folder is None else folder / logger.name / version


def _local(folder: str | None) -> Path | None:
    """The folder, unless it is on another machine."""
    return None if folder is None or "://" in folder else Path(folder)


def _is_a(logger: Logger, name: str) -> bool:
    # By name, since lightning.pytorch and pytorch_lightning have a class each.
    return any(cls.__name__ == name for cls in type(logger).__mro__)
