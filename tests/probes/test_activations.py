"""The probe sees what is there, on sampled steps only, and leaves no trace."""

import copy

import pytest
import torch
from torch import nn

from lightning_gradguard.probes.activations import Probe
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.probes.sampled import is_sampled


def look(net, *inputs, step=0, probe=None, backward=False):
    probe = probe or Probe(net)
    assert probe.start(step)
    for x in inputs[:1]:
        out = net(x)
    probe.stop()
    if backward:
        out.float().sum().backward()
    return {stats.module: stats for stats in probe.take()}


def test_sampled_steps_are_powers_of_two_and_then_every_nth():
    assert [s for s in range(160) if is_sampled(s, 50)] == [0, 1, 2, 4, 8, 16, 32, 50, 64, 100, 150]
    assert all(is_sampled(s, 1) for s in range(5))


def test_hooks_are_there_on_sampled_steps_only_and_gone_after():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    probe = Probe(net, every_n_steps=10)

    def hooks():
        return sum(len(m._forward_hooks) for m in net.modules())

    assert not probe.start(3)
    assert hooks() == 0
    assert probe.start(10)
    assert hooks() == 2 + 3, "one for each that is watched, one for each that may apply functions"
    probe.stop()
    assert hooks() == 0
    assert probe.take() is None, "no forward pass, no sample"


def test_outputs_are_measured_as_they_are():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    seen = look(net, x)
    assert list(seen) == ["0", "1", "2"]
    hidden = net[0](x).detach()
    assert seen["0"].rms == pytest.approx(float(hidden.square().mean().sqrt()))
    assert seen["0"].max_abs == pytest.approx(float(hidden.abs().max()))
    assert seen["0"].input_rms == pytest.approx(float(x.square().mean().sqrt()))
    assert seen["2"].input_rms is None
    assert seen["1"].kind == "Tanh"
    assert seen["0"].dtype == "float32"


@pytest.mark.parametrize(
    ("activation", "inputs", "share"),
    [
        (nn.Tanh(), [-9.0, -0.1, 0.1, 9.0], 0.5),
        (nn.Sigmoid(), [-9.0, -0.1, 0.1, 9.0], 0.5),
        (nn.Tanh(), [0.0, 1.0, 2.0, 3.0], 0.25),
    ],
)
def test_saturation_is_the_share_of_flat_outputs(activation, inputs, share):
    seen = look(nn.Sequential(activation), torch.tensor([inputs]))
    assert seen["0"].saturated == pytest.approx(share)


def test_a_unit_is_dead_when_silent_in_every_batch_not_in_one():
    net = nn.Sequential(nn.ReLU())
    probe = Probe(net, every_n_steps=1)
    first = look(net, torch.tensor([[1.0, -1.0, -1.0, -1.0]]), step=0, probe=probe)["0"]
    second = look(net, torch.tensor([[-1.0, 1.0, -1.0, -1.0]]), step=1, probe=probe)["0"]
    assert (first.dead, first.num_batches) == (0.75, 1)
    assert (second.dead, second.num_batches) == (0.5, 2)


def test_the_memory_of_dead_units_is_renewed_so_that_a_revived_one_is_seen(monkeypatch):
    monkeypatch.setattr("lightning_gradguard.probes.activations._WINDOW", 2)
    net = nn.Sequential(nn.ReLU())
    probe = Probe(net, every_n_steps=1)
    for step, value in enumerate([1.0, -1.0, -1.0]):
        seen = look(net, torch.tensor([[value]]), step=step, probe=probe)["0"]
    assert (seen.dead, seen.num_batches) == (1.0, 1)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU()])
def test_units_far_below_zero_are_dead_for_relu_and_its_smooth_kin(activation):
    seen = look(nn.Sequential(activation), torch.tensor([[-12.0, 0.5], [-15.0, -0.2]]))
    assert seen["0"].dead == 0.5


def test_the_first_record_tells_of_the_first_sample_however_late_it_comes():
    net = nn.Sequential(nn.Linear(1, 1, bias=False))
    probe = Probe(net, every_n_steps=100)
    for step, weight in enumerate([1.0, 2.0, 3.0]):
        net[0].weight.data.fill_(weight)
        probe.start(step)
        net(torch.ones(1, 1))
        probe.stop()
    assert probe.take()[0].rms == 1.0
    assert probe.take() is None
    for step, weight in ((100, 7.0), (200, 8.0)):
        net[0].weight.data.fill_(weight)
        probe.start(step)
        net(torch.ones(1, 1))
        probe.stop()
    assert probe.take()[0].rms == 8.0, "later records tell of the last one"


def test_after_a_convolution_units_are_channels():
    net = nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU())
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([1.0, -1.0, -1.0]))
    assert look(net, torch.zeros(2, 1, 5))["1"].dead == pytest.approx(2 / 3)
    images = nn.Sequential(nn.ReLU())
    x = torch.full((2, 4, 3, 3), -1.0)
    x[:, 0] = 1.0
    assert look(images, x)["0"].dead == 0.75


def test_order_is_that_of_execution_not_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(2, 2)
            self.first = nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(x))

    net = Backwards()
    probe = Probe(net)
    look(net, torch.ones(1, 2), probe=probe)
    assert probe.order == {"first": 0, "last": 1}


def test_a_shared_module_is_seen_at_each_call_up_to_a_bound():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(2, 2)

        def forward(self, x):
            for _ in range(20):
                x = self.cell(x)
            return x

    seen = look(Loop(), torch.ones(1, 2))
    assert list(seen) == ["cell", *(f"cell#{i}" for i in range(2, 9))]


def test_underflow_of_half_precision_gradients_is_counted():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).half()
    net[0].bias.data.fill_(1.0)
    probe = Probe(net)
    probe.start(0)
    loss = net(torch.ones(2, 4).half()).float().sum() * 1e-6
    probe.stop()
    loss.backward()
    seen = {s.module: s for s in probe.take()}
    assert seen["2"].grad_underflow == 1.0
    assert seen["2"].dtype == "float16"
    assert seen["2"].range_used == pytest.approx(seen["2"].max_abs / 65504)
    wide = look(nn.Sequential(nn.Linear(4, 1)), torch.ones(2, 4), backward=True)
    assert wide["0"].grad_underflow is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)),
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double(),
    ],
)
def test_watching_changes_nothing(build):
    net = build()
    twin = copy.deepcopy(net)
    x = torch.randn(6, 4, dtype=next(net.parameters()).dtype)
    outputs = []
    for model, watched in ((net, True), (twin, False)):
        torch.manual_seed(3)
        probe = Probe(model)
        if watched:
            probe.start(0)
        out = model(x)
        probe.stop()
        out.square().sum().backward()
        outputs.append((out, torch.rand(1)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1]), "no random number was drawn"
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("how", ["function", "module", "inner"])
def test_compiled_modules_are_seen_only_where_they_run_eagerly_and_under_the_users_names(how):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    if how == "function":
        model = torch.compile(net, backend="eager")
    elif how == "module":
        net.compile(backend="eager")
        model = net
    else:
        net[0] = torch.compile(net[0], backend="eager")
        model = net
    x = torch.randn(5, 3)
    expected = model(x)  # compiled without hooks
    for eagerly, names in ((False, {"1", "2"} if how == "inner" else set()), (True, {"0", "1", "2"})):
        instruments = Instruments(model, every_n_steps=1, eagerly=eagerly)
        for step in range(2):
            instruments.before_forward(step)
            assert torch.allclose(model(x), expected)
            instruments.after_forward()
            assert {stats.module for stats in instruments.probe.take() or ()} == names
    assert torch.allclose(model(x), expected)


def test_outputs_that_are_not_float_tensors_are_passed_over():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(3, 2)
            self.count = nn.Parameter(torch.zeros(1))

        def forward(self, tokens):
            self.embed(tokens)
            return {"answer": 42}

    seen = look(Odd(), torch.tensor([0, 1]))
    assert list(seen) == ["embed"]
    assert seen["embed"].input_rms == pytest.approx(0.5**0.5), "tokens are an input as well"


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_bad_interval_is_refused(every, error):
    with pytest.raises(error, match="every_n_steps must be"):
        Probe(nn.Linear(1, 1), every_n_steps=every)
