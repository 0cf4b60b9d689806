"""Whether steps come, and begin with no gradient of an earlier one."""

import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.probes.steps import Steps


def make():
    net = nn.Linear(2, 1)
    return net, Steps(Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1)))


def test_many_backward_passes_without_a_step_are_said_now_and_then():
    _, steps = make()
    said = []
    for _ in range(64):
        steps.add_backward()
        said.append(steps.waiting())
    assert [s for s in said if s is not None] == [32, 48, 64]


def test_nothing_is_said_once_a_step_came_or_somebody_else_moved_the_weights():
    net, steps = make()
    steps.step()
    for _ in range(64):
        steps.add_backward()
    assert steps.waiting() is None
    net, steps = make()
    for _ in range(40):
        steps.add_backward()
        with torch.no_grad():
            net.weight.add_(1.0)
    assert steps.waiting() is None


def test_gradients_that_one_backward_pass_of_a_step_found_gone_are_not_old():
    _, steps = make()
    steps.asked = True
    steps.step()
    for gradient in (None, torch.ones(2)):  # accumulated over two batches
        steps.look([gradient])
    steps.step()
    assert steps.take_old_gradients() is False and not steps.asked
    steps.asked = True
    for _ in range(2):
        steps.step()
        steps.look([torch.ones(2)])
    steps.step()
    assert steps.take_old_gradients() is True
    assert steps.take_old_gradients() is None


def test_gradients_of_a_step_whose_beginning_nobody_saw_are_not_called_old():
    _, steps = make()
    steps.asked = True
    steps.look([torch.ones(2)])  # the third of three batches that are accumulated by hand
    steps.step()
    assert steps.take_old_gradients() is None


def test_a_graph_leads_to_parameters_of_the_optimizer_or_elsewhere():
    net, steps = make()
    steps.look_where_it_leads(nn.Linear(2, 1)(torch.ones(1, 2)).sum())
    assert steps.reached is False
    steps.look_where_it_leads(net(torch.ones(1, 2)).relu().sum())
    assert steps.reached is True
