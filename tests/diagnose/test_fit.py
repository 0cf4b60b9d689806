"""A diagnosis in a real Trainer: found, printed, and silent where all is well."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradguard import GradGuard, GradientNormMonitor
from lightning_gradguard.diagnose import NoGradient, default_rules


class Classifier(pl.LightningModule):
    def __init__(self, cut: bool = False, lr: float = 0.05) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)
        self.cut, self.lr = cut, lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.body(x)
        return nn.functional.cross_entropy(self.head(hidden.detach() if self.cut else hidden), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def data():
    x = torch.randn(320, 8)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16)


def test_a_cut_graph_is_named_with_its_remedy_and_told_at_the_end(make_trainer, caplog):
    guard = GradGuard(log_every_n_steps=2)
    make_trainer(callbacks=[guard], enable_progress_bar=True).fit(Classifier(cut=True), data())
    (finding,) = guard.findings
    assert finding.rule == "no-gradient"
    assert finding.layers == ("body.0",)
    assert "detach()" in finding.remedies[0]
    assert "no-gradient" in caplog.text
    assert "body.0" in caplog.text


def test_a_healthy_run_gets_no_finding(make_trainer):
    guard = GradGuard(log_every_n_steps=2)
    make_trainer(callbacks=[guard], max_epochs=3).fit(Classifier(), data())
    assert guard.findings == []


def test_a_learning_rate_that_throws_the_weights_away_is_named_first(make_trainer):
    monitor = GradientNormMonitor(log_every_n_steps=2)
    make_trainer(callbacks=[monitor], max_epochs=2).fit(Classifier(lr=30.0), data())
    assert monitor.findings[0].rule == "updates-too-large"


def test_rules_can_be_chosen_and_left_out(make_trainer):
    none = GradientNormMonitor(rules=[], log_every_n_steps=2)
    make_trainer(callbacks=[none]).fit(Classifier(cut=True), data())
    assert none.findings == []
    others = GradientNormMonitor(rules=[r for r in default_rules() if r.id != NoGradient.id], log_every_n_steps=2)
    make_trainer(callbacks=[others]).fit(Classifier(cut=True), data())
    assert "no-gradient" not in [f.rule for f in others.findings]
