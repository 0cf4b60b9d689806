"""Names settings that do nothing in the fit at hand, once: what the constructor cannot know yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from lightning_gradguard.callbacks.session import Plan


def warn_of_idle_settings(trainer: pl.Trainer, module: pl.LightningModule, plan: Plan) -> None:
    """Warns of each setting without an effect, and says what would give it one.

    Args:
        trainer: whose fit begins.
        module: that it trains.
        plan: what the callbacks on it asked for.
    """
    for words in _idle_settings(trainer, module, plan):
        rank_zero_warn(words, stacklevel=3)


def _idle_settings(trainer: pl.Trainer, module: pl.LightningModule, plan: Plan) -> Iterator[str]:
    if plan.prog_bar and trainer.progress_bar_callback is None:
        yield "prog_bar=True has no effect: the Trainer has no progress bar (enable_progress_bar=False)"
    if plan.guard is None or not plan.guard.hold_lr_on_skip:
        return
    if not module.automatic_optimization:
        yield "hold_lr_on_skip=True has no effect: under manual optimization the module steps its schedulers itself"
    elif not any(config.interval == "step" for config in trainer.lr_scheduler_configs):
        yield 'hold_lr_on_skip=True has no effect: no scheduler steps with every batch ("interval": "step")'
