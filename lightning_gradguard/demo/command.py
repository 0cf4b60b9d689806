"""``gradguard demo``: trains without and with a cure, and shows what is said, what changed and where to look."""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_gradguard.callbacks import GradGuard
from lightning_gradguard.demo.trainings import Classifier, final_loss, make_batches


@dataclass(frozen=True)
class Run:
    """One training of the demo.

    Attributes:
        name: of its log folder.
        what: what is special about it, in words.
        model: arguments of :class:`~lightning_gradguard.demo.trainings.Classifier`.
        guard: arguments of :class:`~lightning_gradguard.GradGuard`.
    """

    name: str
    what: str
    model: dict[str, Any]
    guard: dict[str, Any]


_BAD = {"depth": 4, "bad_batches": (20, 21)}
_RUNS = (
    Run("deep", "12 sigmoid layers", {"depth": 12, "activation": nn.Sigmoid}, {}),
    Run("deep-cured", "as the finding says: normalized, and ReLU", {"depth": 12, "normalize": True}, {}),
    Run("bad-batches", "two batches of NaN in each epoch, only watched", _BAD, {"on_nonfinite": None}),
    Run("bad-batches-guarded", "the same, guarded", _BAD, {"on_nonfinite": "skip"}),
)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="gradguard demo",
        description="Trains four small networks in well under a minute: two that go wrong, and the same two cured. "
        "What GradGuard says of each is printed as it would be in a training of yours.",
    )
    parser.add_argument("--logdir", type=Path, default=Path("gradguard-demo"), help="log folder (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=200, help="optimizer steps of each training (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    _quiet_lightning()
    torch.set_num_threads(1)  # more would get in each other's way: the layers are tiny
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    for heading, justify in (("run", "left"), ("what", "left"), ("loss at the end", "right")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for run in _RUNS:
        console.print(f"\n[bold]{run.name}[/bold]: {run.what}")
        loss = train(run, options.logdir, options.steps)
        table.add_row(run.name, run.what, f"{loss:.3f}")
    console.print(table)
    where = shlex.quote(str(options.logdir))
    print(f"Report:  gradguard report {where}\nPicture: tensorboard --logdir {where}")
    return 0


def train(run: Run, logdir: Path, steps: int) -> float:
    """Trains one network as a user would; returns its loss over all samples."""
    shutil.rmtree(logdir / run.name, ignore_errors=True)  # of an earlier demo
    pl.seed_everything(0, verbose=False)
    module = Classifier(**run.model)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=TensorBoardLogger(logdir, name=run.name, version=""),
        log_every_n_steps=10,
        callbacks=[GradGuard(**run.guard)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, make_batches())
    return final_loss(module)


def _quiet_lightning() -> None:
    """Leaves what GradGuard says, and takes away what Lightning says of this machine."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*LeafSpec", ".*exists and is not empty", ".*GPU available"):
        warnings.filterwarnings("ignore", message=message)
