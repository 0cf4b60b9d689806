"""Weights in plain lists, dicts and attributes: found where they should train, left alone where they should not."""

import itertools

import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.probes.unregistered import Unregistered


class Net(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.head, self.more = nn.Linear(4, 1), more

    def forward(self, x):
        return self.head(x)


def weight():
    return torch.randn(4, requires_grad=True)


def looked_at(net, use, steps=3, change=lambda: None, hold=lambda net: ()):
    """What is found after some steps; each uses what the net keeps in a way of its own."""
    optimizer = torch.optim.SGD([*net.parameters(), *hold(net)], 0.1)
    layout = Layout.from_optimizer(net, optimizer)
    seen = Unregistered(net)
    seen.look([])
    for _ in range(steps):
        optimizer.zero_grad()
        net(use(net.more, torch.randn(2, 4))).sum().backward()
        optimizer.step()
        change()
        found = seen.look([layout])
    return found


@pytest.mark.parametrize(
    ("more", "use", "places"),
    [
        ([nn.Linear(4, 4), nn.Linear(4, 4)], lambda more, x: more[1](more[0](x)), ("more[0]", "more[1]")),
        ({"a": [nn.Linear(4, 4)]}, lambda more, x: more["a"][0](x), ("more['a'][0]",)),
        ((weight(),), lambda more, x: more[0] * x, ("more[0]",)),
        (weight(), lambda more, x: more * x, ("more",)),
    ],
    ids=["list", "dict", "tuple of tensors", "tensor"],
)
def test_weights_in_plain_places_are_found_and_named(more, use, places):
    assert looked_at(Net(more), use) == places


def test_a_teacher_that_is_kept_out_on_purpose_is_left_alone():
    def use(more, x):
        with torch.no_grad():
            return x + more[0](x)

    assert looked_at(Net([nn.Linear(4, 4)]), use) == ()
    assert looked_at(Net([nn.Linear(4, 4).requires_grad_(False)]), lambda more, x: more[0](x)) == ()


def test_weights_that_an_optimizer_has_or_that_are_changed_by_hand_are_left_alone():
    assert looked_at(Net([weight()]), lambda more, x: more[0] * x, hold=lambda net: net.more) == ()
    net = Net([weight()])
    assert looked_at(net, lambda more, x: more[0] * x, change=lambda: net.more[0].data.sub_(net.more[0].grad)) == ()


def test_an_input_that_is_kept_for_its_gradient_is_another_one_in_the_next_step():
    net = Net(None)

    def use(more, x):
        net.more = x.requires_grad_()
        return net.more

    assert looked_at(net, use) == ()


def test_registered_modules_are_no_find_wherever_else_they_are_listed():
    net = Net(None)
    net.more = [net.head]
    assert looked_at(net, lambda more, x: x) == ()


def test_long_lists_hold_data_and_only_their_beginning_is_looked_at():
    net = Net(itertools.repeat(None))
    net.more = [torch.zeros(1)] * 1000 + [weight()]
    assert looked_at(net, lambda more, x: more[-1] * x) == ()


def test_the_record_of_the_second_step_tells(make_record):
    net = Net([nn.Linear(4, 4)])
    layout = Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), 0.1))
    instruments = Instruments(net)
    for step in range(2):
        instruments.before_forward(step)
        loss = net(net.more[0](torch.randn(2, 4))).sum()
        instruments.after_forward(loss)
        loss.backward()
        instruments.before_step(layout, step)
        record = instruments.enrich(make_record(step, early=True), layout)
    assert record.unregistered == ("more[0]",)
