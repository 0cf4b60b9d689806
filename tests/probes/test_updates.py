"""Updates are measured, not guessed."""

import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.probes.updates import UpdateMeter, part_of


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


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (True, TypeError), (1.5, TypeError)])
def test_a_bad_interval_is_refused(every, error):
    net = nn.Linear(1, 1)
    layout = Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(error, match="every_n_steps must be"):
        UpdateMeter(layout, every)


def embedding(rows=32):
    net = nn.Embedding(4000, 64)
    return net, net(torch.randint(4000, (rows,))).square().sum()


def wide_classifier():
    net = nn.Linear(512, 5000, bias=False)
    return net, nn.functional.cross_entropy(net(torch.randn(8, 512)), torch.randint(5000, (8,)))


def silent_inputs():
    net = nn.Linear(784, 256, bias=False)
    inputs = torch.zeros(16, 784)
    inputs[:, ::28] = torch.rand(16, 28)
    return net, net(inputs).relu().square().sum()


def convolution():
    net = nn.Conv2d(64, 128, 3, bias=False)
    return net, net(torch.randn(2, 64, 5, 5)).square().sum()


@pytest.mark.parametrize(
    ("make", "kind", "bound"),
    [
        (convolution, torch.optim.SGD, 0.03),
        (convolution, torch.optim.Adam, 0.03),
        (silent_inputs, torch.optim.SGD, 0.03),
        (silent_inputs, torch.optim.Adam, 0.03),
        (wide_classifier, torch.optim.Adam, 0.03),
        (wide_classifier, torch.optim.SGD, 0.25),
        (embedding, torch.optim.Adam, 0.25),
        (embedding, torch.optim.SGD, 0.25),
    ],
)
def test_a_sixteenth_of_a_large_tensor_tells_the_change_of_the_whole(make, kind, bound):
    for seed in range(5):
        torch.manual_seed(seed)
        net, loss = make()
        optimizer = kind(net.parameters(), lr=0.01)
        meter = UpdateMeter(Layout.from_optimizer(net, optimizer))
        loss.backward()
        before = net.weight.detach().clone()
        meter.before_step(0)
        optimizer.step()
        meter.after_step()
        expected = (net.weight.detach() - before).norm() / before.norm()
        assert part_of(before) is not before
        assert meter.take() == pytest.approx((float(expected),), rel=bound)


def test_copies_of_large_tensors_take_a_sixteenth_of_their_memory():
    assert part_of(torch.zeros(768, 3072)).numel() <= 1.1 * 768 * 3072 / 16


@pytest.mark.parametrize("shape", [(2304, 768), (1000, 100), (128, 64, 3, 3), (4000, 33)])
def test_stretches_of_a_large_tensor_touch_every_row_and_every_column(shape):
    whole = torch.zeros(shape)
    part_of(whole).fill_(1.0)
    assert whole.sum() == part_of(whole).numel(), "no element is in two stretches"
    assert (whole.flatten(1).sum(0) > 0).all()
    assert (whole.flatten(1).sum(1) > 0).all()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(256, 256), torch.zeros(2**17), torch.zeros(2**14, 8), torch.zeros(600, 500).t(), torch.tensor(1.0)],
    ids=["small", "flat", "short rows", "transposed", "scalar"],
)
def test_other_tensors_are_compared_whole(tensor):
    assert part_of(tensor) is tensor
