"""Updates are measured, not guessed."""

import pytest
import torch
from torch import nn

from lightning_gradguard.diagnose.updates import UpdateMeter
from lightning_gradguard.layout import Layout


def step(net, optimizer, meter, number):
    optimizer.zero_grad()
    net(torch.ones(2, 3)).square().sum().backward()
    meter.before_step(number)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    meter.after_step()
    return before


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_ratio_is_that_of_the_weights_before_and_after(kind):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = kind(net.parameters(), lr=0.01)
    meter = UpdateMeter(Layout.from_optimizer(net, optimizer))
    before = step(net, optimizer, meter, 0)
    after = [p.detach() for p in net.parameters()]
    expected = []
    for start in (0, 2):
        moved = torch.cat([(after[i] - before[i]).flatten() for i in (start, start + 1)]).norm()
        expected.append(float(moved / torch.cat([before[i].flatten() for i in (start, start + 1)]).norm()))
    assert meter.take() == pytest.approx(expected, rel=1e-5)
    assert meter.take() is None, "each sample is told once"


def test_steps_that_are_not_sampled_keep_no_copy():
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    meter = UpdateMeter(Layout.from_optimizer(net, optimizer), every_n_steps=10)
    meter.before_step(3)
    assert meter._before is None
    meter.after_step()
    assert meter.take() is None


def test_the_largest_of_several_samples_is_told():
    net = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    meter = UpdateMeter(Layout.from_optimizer(net, optimizer), every_n_steps=1)
    step(net, optimizer, meter, 0)
    optimizer.param_groups[0]["lr"] = 1e-2
    step(net, optimizer, meter, 1)
    optimizer.param_groups[0]["lr"] = 1e-6
    step(net, optimizer, meter, 2)
    (ratio,) = meter.take()
    assert ratio > 1e-3


def test_zero_weights_that_move_are_infinite_and_that_stay_are_none():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    for part in net:
        nn.init.zeros_(part.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    meter = UpdateMeter(Layout.from_optimizer(net, optimizer))
    meter.before_step(0)
    net[1].weight.data.fill_(1.0)
    meter.after_step()
    assert meter.take() == (None, float("inf"))


@pytest.mark.parametrize("every", [0, True, 1.5])
def test_a_bad_interval_is_refused(every):
    net = nn.Linear(1, 1)
    layout = Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="every_n_steps must be an int of at least 1"):
        UpdateMeter(layout, every)
