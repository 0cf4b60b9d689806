import math

import pytest
import torch
from torch import nn

from lightning_gradguard.guard.finite import State, nonfinite, nonfinite_statistics


def test_weights_and_what_optimizers_keep_of_them_are_named():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = State(net, [optimizer])
    assert state.weights() == state.moments() == ()
    with torch.no_grad():
        net[1].weight[0, 2] = math.inf
        optimizer.state[net[0].bias]["exp_avg_sq"][1] = math.nan
    assert (state.weights(), state.moments()) == (("'1.weight'",), ("exp_avg_sq of '0.bias'",))


def test_a_frozen_mask_of_minus_infinity_is_no_weight():
    net = nn.Module()
    net.mask = nn.Parameter(torch.full((3,), -math.inf), requires_grad=False)
    assert State(net, [torch.optim.SGD([net.mask], lr=0.1)]).weights() == ()


@pytest.mark.parametrize(
    ("tensor", "fine"),
    [
        (torch.tensor([1e300], dtype=torch.float64), True),
        (torch.full((9,), 60000.0, dtype=torch.float16), True),
        (torch.tensor([complex(3e38, 3e38)]), True),
        (torch.tensor([complex(0.0, math.nan)]), False),
        (torch.empty(0), True),
        (torch.tensor([1]), True),
        (torch.tensor([0.0, -math.inf], dtype=torch.bfloat16), False),
    ],
    ids=["float64", "float16", "complex", "complex nan", "empty", "int", "bfloat16"],
)
def test_every_dtype_is_read_without_overflow(tensor, fine):
    assert nonfinite([("it", tensor)]) == (() if fine else ("it",))


def test_running_statistics_are_looked_at_and_other_buffers_are_not():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    net.register_buffer("mask", torch.tensor(-math.inf))
    assert nonfinite_statistics(net) == ()
    net[1].running_var[0] = math.nan
    assert nonfinite_statistics(net) == ("'1.running_var'",)
