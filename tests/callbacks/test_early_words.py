"""What is certain at once is said in the first steps, at default settings."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradguard import GradGuard


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def of_no_use(self):
        self.spare = nn.Parameter(torch.ones(3, 3))
        return [self.spare]


class Regression(pl.LightningModule):
    def __init__(self, make_optimizer):
        super().__init__()
        self.net = Net()
        self.make_optimizer = make_optimizer

    def training_step(self, batch, index):
        return (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        return self.make_optimizer(self.net)

    def train_dataloader(self):
        return DataLoader(torch.randn(70 * 32, 8), 32)


def fit(make_trainer, make_optimizer, **options):
    guard = GradGuard(**options)
    torch.manual_seed(0)
    make_trainer(callbacks=[guard], log_every_n_steps=50).fit(Regression(make_optimizer))
    return guard


FAULTS = {
    "no-gradient": lambda net: torch.optim.Adam(net.of_no_use()),
    "rate-zero": lambda net: torch.optim.Adam(net.parameters(), lr=0.0),
    "wrong-sign": lambda net: torch.optim.SGD(net.parameters(), 3e-3, maximize=True),
    "weight-decay": lambda net: torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=60.0),
    "not-in-optimizer": lambda net: torch.optim.Adam(net[0].parameters()),
}


class Cleared(Regression):
    """Clears the gradients between the backward pass and the step."""

    automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(super().training_step(batch, index))
        self.optimizers().zero_grad()
        self.optimizers().step()


def test_gradients_that_are_cleared_before_the_step_are_told_from_none_at_all(make_trainer):
    guard = GradGuard()
    module = Cleared(lambda net: torch.optim.Adam(net.parameters()))
    make_trainer(callbacks=[guard], log_every_n_steps=50).fit(module)
    (finding,) = guard.findings
    assert finding.rule == "no-step"
    assert "zero_grad" in finding.causes[0]
    assert finding.step <= 4


@pytest.mark.parametrize("rule", FAULTS)
def test_a_silent_fault_is_said_by_step_64_and_its_cause_first(make_trainer, rule):
    guard = fit(make_trainer, FAULTS[rule])
    assert guard.findings[0].rule == rule
    assert min(r.step for r in guard.records for f in r.findings if f.rule == rule) <= 64


def test_early_steps_are_recorded_and_marked_and_a_healthy_run_hears_nothing(make_trainer):
    guard = fit(make_trainer, lambda net: torch.optim.Adam(net.parameters(), 3e-3))
    early = [r.step for r in guard.records if r.early]
    assert early == [1, 2, 4, 8, 16, 32, 64]
    assert [r.step for r in guard.records if not r.early] == [0, 49, 69], "the first one, each fiftieth, the last one"
    assert [f for f in guard.findings if f.severity != "info"] == []


def test_a_rule_is_silenced_by_its_id_and_an_unknown_id_is_refused(make_trainer):
    guard = fit(make_trainer, FAULTS["rate-zero"], silence=("rate-zero",))
    assert "rate-zero" not in [f.rule for f in guard.findings]
    with pytest.raises(ValueError, match=r"cannot silence \['rate-nought'\]"):
        GradGuard(silence=("rate-nought",))


class ByHand(Regression):
    """Gathers the gradients of three batches, and steps; clears them, or forgets to."""

    automatic_optimization = False

    def __init__(self, *, clears):
        super().__init__(lambda net: torch.optim.SGD(net.parameters(), 1e-3))
        self.clears = clears

    def training_step(self, batch, index):
        self.manual_backward(super().training_step(batch, index) / 3)
        if index % 3 == 2:
            self.optimizers().step()
            if self.clears:
                self.optimizers().zero_grad()


@pytest.mark.parametrize("clears", [True, False], ids=["clears", "forgets"])
def test_batches_that_are_gathered_by_hand_are_not_old_gradients_and_those_of_steps_before_are(make_trainer, clears):
    guard = GradGuard()
    torch.manual_seed(0)
    make_trainer(callbacks=[guard], log_every_n_steps=50).fit(ByHand(clears=clears))
    found = [f for f in guard.findings if f.rule == "no-zero-grad"]
    assert [f.step for f in found] == ([] if clears else [17])
    assert [r.step for r in guard.records if r.early] == [5, 8, 17, 32, 65]
    assert all(r.update_ratios for r in guard.records if r.early and r.step < 64), "though sampled steps had no step"
