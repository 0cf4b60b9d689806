"""Counted, so that no change makes clipping more expensive unseen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_gradguard.clip.apply import apply_
from lightning_gradguard.clip.base import ClipPolicy, fresh_state
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from tests.clip.policies import ALL
from tests.counting import Counting

# Operator calls of deciding alone: for policies with one threshold they do not depend on the number of parameters.
DECIDING = {
    "NormClip": 6,
    "ValueClip": 1,
    "AutoClip": 27,
    "ZClip": 26,
    "ZClip-original": 36,
    "QuantileClip": 20,
    "AdaGC": 27,
}
SIDE = 80  # too large to be stacked


def counted(make: Callable[[], ClipPolicy], num_params: int) -> tuple[Counting, Counting]:
    net = nn.ModuleList([nn.Linear(SIDE, SIDE, bias=False) for _ in range(num_params)])
    layout = Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    policy = make()
    state = fresh_state(policy, layout, torch.device("cpu"))
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        measurement = measure(layout)
        with torch.no_grad(), Counting() as deciding:
            clip = policy.decide(measurement, state)
        with Counting() as applying:
            apply_(measurement, clip)
    return deciding, applying


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("num_params", [1, 40])
def test_deciding_costs_a_handful_of_operator_calls(name: str, num_params: int) -> None:
    deciding, _ = counted(ALL[name], num_params)
    assert deciding.num_calls <= DECIDING[name]


@pytest.mark.parametrize("name", ["NormClip", "AutoClip", "ZClip", "QuantileClip", "AdaGC"])
def test_clipping_by_norm_reads_the_gradients_once_to_scale_them_and_never_to_decide(name: str) -> None:
    size = 20 * SIDE * SIDE
    deciding, applying = counted(ALL[name], 20)
    assert deciding.read < size / 20
    assert applying.read < size * 1.01
    assert applying.written == size


def test_unit_wise_clipping_costs_few_operator_calls_a_tensor() -> None:
    few, many = (sum(part.num_calls for part in counted(ALL["AGC"], num)) for num in (10, 50))
    assert (many - few) / 40 <= 7  # two norms, and views of the factors
