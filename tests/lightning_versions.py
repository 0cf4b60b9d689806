"""What the installed Lightning has and the oldest that we declare, 2.5.0, has not: tests ask for it here."""

from __future__ import annotations

from inspect import signature
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

# Of Trainer.fit: the checkpoint is read with nothing in it trusted (from 2.6 on).
WEIGHTS_ONLY: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(Trainer.fit).parameters else {}

# Of ModelCheckpoint: it saves when an exception ends the run (from 2.6 on); OnExceptionCheckpoint is older.
ON_EXCEPTION: dict[str, Any] = (
    {"save_on_exception": True} if "save_on_exception" in signature(ModelCheckpoint.__init__).parameters else {}
)
