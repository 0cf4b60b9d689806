"""A setting that does nothing in the fit at hand is named, once."""

from __future__ import annotations

import warnings

import pytest
import torch

from lightning_gradguard import GradGuard, NonFiniteGuard
from tests.models import Regression, batches


class Scheduled(Regression):
    """A learning rate that falls with every step, or with every epoch."""

    def __init__(self, interval: str, by_hand: bool = False) -> None:
        super().__init__()
        self.interval = interval
        self.automatic_optimization = not by_hand

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


@pytest.mark.parametrize(
    ("guard", "model", "words"),
    [
        (GradGuard(prog_bar=True), Scheduled("step"), "prog_bar=True has no effect: the Trainer has no progress bar"),
        (NonFiniteGuard(hold_lr_on_skip=True), Scheduled("epoch"), "no scheduler steps with every batch"),
        (NonFiniteGuard(hold_lr_on_skip=True), Regression(), "no scheduler steps with every batch"),
        (NonFiniteGuard(hold_lr_on_skip=True), Scheduled("step", by_hand=True), "under manual optimization"),
    ],
    ids=["progress bar", "by epoch", "no scheduler", "by hand"],
)
def test_it_is_named_with_the_reason(make_trainer, guard, model, words):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make_trainer(callbacks=[guard], limit_train_batches=1).fit(model, batches())
    assert sum(words in str(warning.message) for warning in said) == 1


@pytest.mark.parametrize(
    ("guard", "options"),
    [(GradGuard(prog_bar=True), {"enable_progress_bar": True}), (NonFiniteGuard(hold_lr_on_skip=True), {})],
    ids=["progress bar", "by step"],
)
def test_one_that_has_an_effect_is_not(make_trainer, guard, options, recwarn):
    make_trainer(callbacks=[guard], limit_train_batches=1, **options).fit(Scheduled("step"), batches())
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]
