import math

import pytest
import torch
from torch import nn

from lightning_gradguard.clip.clipper import leave_alone
from lightning_gradguard.guard.damage import Damage
from lightning_gradguard.guard.guard import Guard, NonFiniteGradientError
from lightning_gradguard.guard.judge import Judge, Unguarded
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.guard.verdict import Dropped, Passed
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.spikes import SpikeRule


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(8, 3)).square().sum().backward()
    return net


def judge_of(net, guard):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    judge = Judge(guard, Recovery(net, [optimizer]), Optimizers(optimizer))
    return judge, Layout.from_optimizer(net, optimizer)


def nobody_clips(measurement):
    return leave_alone(measurement)


def judged(judge, layout, step=0, *, nan=False, **options):
    """Has the gradients judged, as they are or with a NaN put in."""
    if nan:
        layout.params[0].grad[0, 0] = math.nan
    return judge.judge(step, measure(layout), nobody_clips, **options)


def test_a_good_step_passes_with_its_norm(net):
    judge, layout = judge_of(net, Guard())
    passed = judged(judge, layout)
    assert isinstance(passed, Passed)
    assert not passed.clipped
    assert passed.signals == (float(measure(layout).total), 1.0)


def test_a_dropped_step_has_no_gradients_left_and_its_buffers_are_those_of_the_step_before(net):
    judge, layout = judge_of(net, Guard())
    judged(judge, layout)
    good = net[1].running_mean.clone()
    net[1].running_mean.fill_(math.nan)
    dropped = judged(judge, layout, 1, nan=True)
    assert (dropped.verdict, dropped.error, judge.moved) == ("skipped", None, False)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(net[1].running_mean, good)


@pytest.mark.parametrize(("scale", "verdict"), [(1024.0, "overflow"), (1.0, "skipped")])
def test_an_overflow_is_the_scalers_business_above_the_floor(net, scale, verdict):
    judge, layout = judge_of(net, Guard())
    dropped = judged(judge, layout, nan=True, scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    assert dropped.verdict == verdict
    assert (layout.params[0].grad is None) == (verdict == "skipped")
    assert judge.guard.streak == (verdict == "skipped")


def test_the_error_that_ends_a_run_names_step_optimizer_and_parameter(net):
    judge, layout = judge_of(net, Guard("raise"))
    dropped = judged(judge, layout, 7, nan=True)
    assert isinstance(dropped.error, NonFiniteGradientError)
    assert "'0.weight' (1 NaN, 0 Inf)" in str(dropped.error)
    assert "step 7, optimizer 0" in str(dropped.error)


def test_the_error_says_so_where_dropping_steps_cannot_help(net):
    judge, layout = judge_of(net, Guard("raise"))
    judged(judge, layout)
    with torch.no_grad():
        net[0].bias.fill_(math.nan)
    dropped = judged(judge, layout, 7, nan=True)
    assert "A parameter is not finite, so dropping steps cannot help" in str(dropped.error)


def test_stop_is_asked_for_and_stays(net):
    judge, layout = judge_of(net, Guard("stop"))
    judged(judge, layout, nan=True)
    net(torch.randn(8, 3)).square().sum().backward()
    judged(judge, layout, 1)
    assert judge.should_stop


def test_a_spike_is_damage_only_if_it_shall_be_dropped(net):
    for drop in (True, False):
        judge, layout = judge_of(net, Guard(spikes=SpikeRule(warmup=2, window=4, drop=drop)))
        net(torch.randn(8, 3)).square().sum().backward()
        assert all(isinstance(judged(judge, layout, step), Passed) for step in range(4))
        for parameter in layout.params:
            parameter.grad *= 1000.0
        found = judged(judge, layout, 4)
        assert isinstance(found, Dropped) == drop
        assert "is 1e+03 times the usual" in judge.spike


def test_buffers_that_are_not_finite_are_named(net):
    judge, layout = judge_of(net, Guard())
    judged(judge, layout)
    net[1].running_var.fill_(math.inf)
    assert judged(judge, layout, 1).damage == Damage({}, {}, 4, buffers=("1.running_var",))


def test_without_a_guard_every_step_passes(net):
    _, layout = judge_of(net, Guard())
    assert isinstance(judged(Unguarded(), layout, nan=True), Passed)
    assert Unguarded().learn_late_steps(wait=True) == []
