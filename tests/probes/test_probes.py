"""All instruments together, in a plain loop: what they add to a record."""

import itertools

import pytest
import torch
from torch import nn

from lightning_gradguard.diagnose import default_rules
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.record import StepRecord


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.head(self.act(self.frozen(self.rnn(x)[0][:, -1])))


def train(net, steps, every=10):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    pipeline = GradientPipeline(net, optimizer, log_every_n_steps=1)
    instruments = Instruments(net, every)
    for step in range(steps):
        instruments.before_forward(step)
        loss = net(torch.randn(4, 9, 3)).square().mean()
        instruments.after_forward(loss)
        optimizer.zero_grad()
        loss.backward()
        instruments.before_step(pipeline.layout, step)
        record = pipeline.before_step(step=step)
        yield instruments.enrich(record, pipeline.layout), loss.detach()
        optimizer.step()
        instruments.after_step(pipeline.layout)


def test_records_carry_all_that_the_rules_need():
    (first, loss), (second, _) = itertools.islice(train(Net(), 2), 2)
    assert first.loss == pytest.approx(float(loss))
    assert first.layers == ("head", "rnn", "frozen")
    assert first.layer_kinds == ("Linear", "GRU", "Linear")
    assert first.layer_sizes == (18, 312, 72)
    assert first.trainable == (True, True, False)
    assert first.depth == (3, 0, 1), "as they ran; the activation is number 2"
    assert [a.module for a in first.activations] == ["rnn", "frozen", "act", "head"]
    assert list(first.temporal_norms) == ["rnn"]
    assert first.update_ratios is None, "no step has been made yet"
    assert second.update_ratios[2] == 0.0
    assert 0.001 < second.update_ratios[0] < 0.5


def test_steps_that_are_not_sampled_carry_none_of_it():
    records = [record for record, _ in train(Net(), 8)]
    assert [r.step for r in records if r.activations] == [0, 1, 2, 4]
    assert [r.step for r in records if r.temporal_norms] == [0, 1, 2, 4]
    assert [r.step for r in records if r.update_ratios] == [1, 2, 3, 5]
    assert all(r.depth and r.loss for r in records)


def test_an_enriched_record_survives_json():
    record = next(iter(train(Net(), 1)))[0]
    assert StepRecord.from_json(record.to_json()) == record


def test_each_optimizer_gets_its_own_loss_averaged_over_its_steps():
    net = nn.ModuleDict({"one": nn.Linear(1, 1), "two": nn.Linear(1, 1)})
    optimizers = [torch.optim.SGD(net[name].parameters(), lr=0.1) for name in ("one", "two")]
    layouts = [Layout.from_optimizer(net, optimizer) for optimizer in optimizers]
    instruments = Instruments(net)
    for step, losses in enumerate([(1.0, 10.0), (3.0, 30.0)]):
        for loss, layout in zip(losses, layouts, strict=True):
            instruments.after_forward(torch.tensor(loss))
            instruments.before_step(layout, step)
            instruments.after_step(layout)
    pipelines = [GradientPipeline(net, o, optimizer_index=i, num_optimizers=2) for i, o in enumerate(optimizers)]
    records = []
    for pipeline in pipelines:
        for parameter in pipeline.layout.params:
            parameter.grad = torch.ones_like(parameter)
        records.append(pipeline.before_step(log=True))
    enriched = [instruments.enrich(r, layout) for r, layout in zip(records, layouts, strict=True)]
    assert [r.loss for r in enriched] == [2.0, 20.0]


@pytest.mark.parametrize("options", [{"group_by": "parameter"}, {"per_layer": False}])
def test_the_default_rules_take_records_of_every_grouping(options):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    instruments = Instruments(net, 1)
    pipeline = GradientPipeline(
        net, optimizer, rules=default_rules(), log_every_n_steps=1, instruments=instruments, **options
    )
    for step in range(6):
        instruments.before_forward(step)
        loss = net(torch.randn(4, 9, 3)).square().mean()
        instruments.after_forward(loss)
        optimizer.zero_grad()
        loss.backward()
        record = pipeline.before_step(step=step)
        optimizer.step()
        pipeline.after_step()
    if options == {"group_by": "parameter"}:
        kinds = dict(zip(record.layers, record.layer_kinds, strict=True))
        assert kinds["head.weight"] == "Linear"
        assert kinds["head.bias"] == "Linear.bias"
    else:
        assert record.layers == ()
        assert record.layer_kinds is None
        assert record.loss is not None


def test_a_bad_interval_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        Instruments(nn.Linear(1, 1), 0)
