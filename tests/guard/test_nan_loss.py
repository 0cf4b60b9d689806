"""A loss of NaN with finite gradients: nothing else tells of it."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gradguard import GradGuard, GradientPipeline, NonFiniteGradientError, NonFiniteGuard
from lightning_gradguard.guard.guard import Guard
from tests.guard.models import half_precision
from tests.models import Pair, same, weights

SAYS_SO = pytest.mark.filterwarnings("ignore:step . was")


class Labels(pl.LightningModule):
    """Classifies, and ignores every label of some batches: 0/0, whose gradients are zeros."""

    def __init__(self, ignored=(), make_optimizer=lambda params: torch.optim.AdamW(params, lr=0.01)):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)
        self.ignored = ignored
        self.make_optimizer = make_optimizer

    def training_step(self, batch, batch_idx):
        label = -100 if batch_idx in self.ignored else 1
        return F.cross_entropy(self.net(batch), torch.full((len(batch),), label))

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def data(num_batches=6):
    return DataLoader(torch.randn(num_batches * 2, 4, generator=torch.Generator().manual_seed(1)), batch_size=2)


def fit(make_trainer, guard, model, **options):
    states = []
    model.on_train_batch_end = lambda *args: states.append(weights(model))
    make_trainer(callbacks=[guard], **options).fit(model, data())
    return states


def test_is_dropped_named_and_counted_by_default(make_trainer):
    guard = GradGuard(log_every_n_steps=1)
    with pytest.warns(UserWarning, match="step 3 was skipped: the loss is NaN although every gradient is finite"):
        states = fit(make_trainer, guard, Labels({3}))
    bad = guard.records[3]
    assert (bad.verdict, bad.cause, bad.nonfinite_total, bad.skipped_total) == ("skipped", "loss", 1, 1)
    assert same(states[3], states[2])  # without us weight decay and momentum move them
    assert not same(states[4], states[3])


def test_a_healthy_run_is_none_the_wiser(make_trainer):
    guard = NonFiniteGuard()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(make_trainer, guard, Labels())
    assert {record.cause for record in guard.records} == {None}


@SAYS_SO
@pytest.mark.parametrize("accumulate", [1, 3])
def test_one_batch_of_a_window_is_enough(make_trainer, accumulate):
    guard = NonFiniteGuard()
    fit(make_trainer, guard, Labels({1}), accumulate_grad_batches=accumulate)
    assert [record.cause for record in guard.records] == (
        ["loss", None] if accumulate == 3 else [None, "loss"] + [None] * 4
    )


@SAYS_SO
def test_rollback_stop_and_raise_have_it_as_any_other_fault(make_trainer):
    rolled = NonFiniteGuard("rollback", rollback_after=2)
    fit(make_trainer, rolled, Labels({2, 3}))
    assert [record.verdict for record in rolled.records][2:4] == ["skipped", "rolled_back"]
    stopped = NonFiniteGuard("stop")
    assert len(fit(make_trainer, stopped, Labels({2}))) == 3
    with pytest.raises(NonFiniteGradientError, match="the loss is nan although every gradient is finite; step 2"):
        fit(make_trainer, NonFiniteGuard("raise"), Labels({2}))


def test_can_be_let_through_and_is_counted_then(make_trainer):
    guard = NonFiniteGuard(drop_nan_loss=False)
    with pytest.warns(UserWarning, match="step 1 was let through: the loss is NaN.*counted in nonfinite_total"):
        states = fit(make_trainer, guard, Labels({1, 3}))
    assert [record.verdict for record in guard.records] == ["ok", "nonfinite", "ok", "nonfinite", "ok", "ok"]
    assert (guard.records[-1].nonfinite_total, guard.records[-1].skipped_total) == (2, 0)
    assert not same(states[1], states[0])


@SAYS_SO
def test_is_no_business_of_a_loss_scaler(make_trainer):
    guard = NonFiniteGuard()
    fit(make_trainer, guard, Labels({3}), plugins=half_precision())
    assert (guard.records[3].verdict, guard.records[3].cause) == ("skipped", "loss")


def test_an_infinite_loss_with_finite_gradients_is_left_alone(make_trainer):
    class RuledOut(Labels):
        def training_step(self, batch, batch_idx):
            scores = self.net(batch).masked_fill(torch.tensor([False, True, False]), -math.inf)
            return F.cross_entropy(scores, torch.ones(len(batch), dtype=torch.long))

    guard = NonFiniteGuard()
    fit(make_trainer, guard, RuledOut())
    assert {record.verdict for record in guard.records} == {"ok"}


@SAYS_SO
def test_optimizers_that_step_after_the_same_losses_are_both_told(make_trainer):
    class Both(Pair):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            wrong = 0.0 * batch.sum() + (math.nan if batch_idx == 2 else 0.0)
            for part in self.parts:
                self.manual_backward(part(batch).square().mean() + wrong)
            for optimizer in optimizers:
                optimizer.step()

        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.parts]

    guard = NonFiniteGuard()
    make_trainer(callbacks=[guard]).fit(Both(), data())
    assert [(r.step, r.optimizer) for r in guard.records if r.cause == "loss"] == [(2, 0), (2, 1)]


@pytest.mark.parametrize(
    "loss",
    [math.nan, torch.tensor(math.nan), torch.tensor([1.0, math.nan]), torch.tensor(complex(0, math.nan))],
    ids=["float", "tensor", "vector", "complex"],
)
def test_a_plain_loop_tells_its_loss_whatever_it_is(loss):
    net = nn.Linear(2, 1)
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), on_nonfinite="skip")
    net(torch.ones(1, 2)).sum().backward()
    assert pipeline.before_step(loss=loss).cause == "loss"
    assert net.weight.grad is None


@pytest.mark.parametrize("nan", [True, False])
def test_the_device_drops_it_by_itself(nan):
    net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    pipeline = GradientPipeline(net, optimizer, on_nonfinite=Guard(on_device=True))
    net(torch.randn(4, 2)).square().sum().backward()
    before = weights(net)
    pipeline.before_step(loss=torch.tensor(math.nan if nan else 1.0))
    optimizer.step()
    pipeline.after_step()
    assert same(weights(net), before) == nan
    net(torch.randn(4, 2)).square().sum().backward()
    late = pipeline.before_step(loss=torch.tensor(1.0))
    assert (late.step, late.cause) == (0, "loss") if nan else late is None


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match="drop_nan_loss must be True or False, got 'no'"):
        Guard(drop_nan_loss="no")
    with pytest.raises(ValueError, match="drop_nan_loss=False needs it"):
        Guard(drop_nan_loss=False, on_device=True)
