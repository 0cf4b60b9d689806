import math

import pytest
import torch
from torch import nn

from lightning_gradguard.guard.damage import Damage, inspect
from lightning_gradguard.guard.guard import Guard, NonFiniteGradientError
from lightning_gradguard.guard.judge import Gate
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from lightning_gradguard.spikes import SpikeRule


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(8, 3)).square().sum().backward()
    return net


def gate_of(net, guard):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return Gate(guard, Recovery(net, [optimizer]), optimizer), Layout.from_optimizer(net, optimizer)


def spoiled(layout):
    layout.params[0].grad[0, 0] = math.nan
    measurement = measure(layout)
    return measurement, inspect(measurement)


def test_a_dropped_step_has_no_gradients_left_and_its_buffers_are_those_of_the_step_before(net):
    gate, layout = gate_of(net, Guard())
    gate.doubts(torch.tensor(1.0), None)
    gate.good_step(0, 1.0, clipped=False)
    good = net[1].running_mean.clone()
    net[1].running_mean.fill_(math.nan)
    verdict, error = gate.drop(1, *spoiled(layout), None)
    assert (verdict, error, gate.moved) == ("skipped", None, False)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(net[1].running_mean, good)


@pytest.mark.parametrize(("scale", "verdict"), [(1024.0, "overflow"), (1.0, "skipped")])
def test_an_overflow_is_the_scalers_business_above_the_floor(net, scale, verdict):
    gate, layout = gate_of(net, Guard())
    gate.doubts(torch.tensor(1.0), None)
    found, _ = gate.drop(0, *spoiled(layout), torch.amp.GradScaler("cpu", init_scale=scale))
    assert found == verdict
    assert (layout.params[0].grad is None) == (verdict == "skipped")
    assert gate.guard.streak == (verdict == "skipped")


def test_the_error_that_ends_a_run_names_step_optimizer_and_parameter(net):
    gate, layout = gate_of(net, Guard("raise"))
    gate.doubts(torch.tensor(1.0), None)
    _, error = gate.drop(7, *spoiled(layout), None)
    assert isinstance(error, NonFiniteGradientError)
    assert "'0.weight' (1 NaN, 0 Inf)" in str(error)
    assert "step 7, optimizer 0" in str(error)


def test_the_error_says_so_where_dropping_steps_cannot_help(net):
    gate, layout = gate_of(net, Guard("raise"))
    gate.doubts(torch.tensor(1.0), None)
    with torch.no_grad():
        net[0].bias.fill_(math.nan)
    _, error = gate.drop(7, *spoiled(layout), None)
    assert "A parameter is not finite, so dropping steps cannot help" in str(error)


def test_stop_is_asked_for_and_stays(net):
    gate, layout = gate_of(net, Guard("stop"))
    gate.doubts(torch.tensor(1.0), None)
    gate.drop(0, *spoiled(layout), None)
    gate.good_step(1, 1.0, clipped=False)
    assert gate.should_stop


def test_spoiled_buffers_are_named_and_a_spike_is_damage_only_if_it_shall_be_dropped(net):
    gate, layout = gate_of(net, Guard(spikes=SpikeRule(warmup=2, window=4, drop=False)))
    gate.doubts(torch.tensor(1.0), None)
    for _ in range(4):
        assert gate.look_beyond_gradients(1.0, {}, layout) is None
    assert gate.look_beyond_gradients(1000.0, {}, layout) is None
    assert "1000 is 1e+03 times the usual 1" in gate.spike
    net[1].running_var.fill_(math.inf)
    assert gate.look_beyond_gradients(1.0, {"buffers": math.inf}, layout) == Damage(
        {}, {}, 4, buffers=("1.running_var",)
    )
