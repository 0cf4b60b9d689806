"""One run, as users have it: a Trainer, our callback with nothing set, and what it said."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lightning_gradguard import GradGuard
from lightning_gradguard.record import Finding, StepRecord

from .mistakes import listed
from .recipe import Batch, Recipe


@dataclass
class Said:
    """A finding, and the step of the record that brought it."""

    finding: Finding
    step: int


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        before: the metric of the untrained network.
        after: the metric at the end; infinite if the run broke.
        said: everything that was ever found, in the order in which it came.
        standing: what held at the end, causes first.
        ended_by: the error that ended the run early.
        first_loss: of the first step.
        last_loss: median of the last eight.
    """

    before: float
    after: float = math.inf
    said: list[Said] = field(default_factory=list)
    standing: list[Finding] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)
    ended_by: str | None = None
    first_loss: float = math.nan
    last_loss: float = math.nan
    seconds: float = 0.0

    @property
    def named_first(self) -> Finding | None:
        """What a user would take for the cause: what stands first at the end, else what came first; not ``info``."""
        loud = [f for f in self.standing if f.severity != "info"]
        loud += [s.finding for s in self.said if s.finding.severity != "info"]
        return loud[0] if loud else None


class Script(pl.LightningModule):
    """The LightningModule of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.net = recipe.model()
        self.recipe = recipe
        self.automatic_optimization = recipe.manual is None
        self.losses: list[Tensor] = []

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        if self.recipe.manual is not None:
            self.losses.append(self.recipe.manual(self, batch).detach())
            return None
        loss = self.recipe.loss(self.net, batch)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        optimizers = listed(self.recipe.optimizer(self.net))
        if self.recipe.schedule is None:
            return optimizers
        schedulers = [{"scheduler": LambdaLR(o, self.recipe.schedule), "interval": "step"} for o in optimizers]
        return optimizers, schedulers


def train(recipe: Recipe, seed: int, watchers: Sequence[Callback] = (), *, guard: GradGuard | None = None) -> Outcome:
    """Trains a recipe with ``GradGuard()``; the same seed gives the same run, whoever watches."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    script = Script(recipe)
    outcome = Outcome(before=recipe.worth(script.net))
    generator = torch.Generator().manual_seed(1000 + seed)
    batches = [recipe.data(generator, True) for _ in range(recipe.per_epoch)]
    guard = guard or GradGuard()
    torch.manual_seed(seed)
    lightning, level = logging.getLogger("lightning.pytorch"), logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(recipe, [*watchers, guard])
        try:
            trainer.fit(script, DataLoader(batches, batch_size=None))
        except Exception as error:  # whatever ends the run is a result
            outcome.ended_by = f"{type(error).__name__}: {error}"
        finally:
            lightning.setLevel(level)
    _fill(outcome, recipe, script, guard)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _trainer(recipe: Recipe, callbacks: list[Callback]) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    manual = recipe.manual is not None
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=math.ceil(recipe.steps * recipe.accumulate / recipe.per_epoch),
        precision=recipe.precision,  # type: ignore[arg-type]
        gradient_clip_val=None if manual else recipe.clip,
        accumulate_grad_batches=1 if manual else recipe.accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )


def _fill(outcome: Outcome, recipe: Recipe, script: Script, guard: GradGuard) -> None:
    losses = [float(loss) for loss in script.losses]
    if losses:
        outcome.first_loss, outcome.last_loss = losses[0], sorted(losses[-8:])[len(losses[-8:]) // 2]
    outcome.records = guard.records
    outcome.said = [Said(finding, record.step) for record in guard.records for finding in record.findings]
    outcome.standing = guard.findings
    if outcome.ended_by is None:
        after = recipe.worth(script.net)
        outcome.after = after if math.isfinite(after) else math.inf
