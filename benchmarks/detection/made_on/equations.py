"""Equations by their residual, and flows in time."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.models import mlp


def tanh_net(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def places(stretch: float = 1.0) -> Any:
    return lambda generator, train: stretch * torch.rand(64, 1, generator=generator)


def physics(stretch: float = 1.0) -> Any:
    """u'' = -pi^2 sin(pi x) on the unit interval, zero at both ends; the solution is sin(pi x)."""

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            slope = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
            curve = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        ends = net(torch.tensor([[0.0], [stretch]])).square().sum()
        force = torch.pi**2 * torch.sin(torch.pi * x / stretch)
        return ((curve * stretch**2 + force) / 10).square().mean() + ends

    return loss


def solution_error(stretch: float = 1.0) -> Any:
    return lambda net, x: (net(x) - torch.sin(torch.pi * x / stretch)).square().mean()


class Steps(nn.Module):
    """Follows a learnt field by twenty steps of Euler."""

    def __init__(self, length: float = 0.05) -> None:
        super().__init__()
        self.field, self.length = mlp(2, 32, 2), length

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            x = x + self.length * self.field(x)
        return x


def spirals(generator: Generator, train: bool) -> Batch:
    x = torch.randn(64, 2, generator=generator)
    turn = torch.tensor([[0.3, -0.9], [0.9, 0.3]])
    return x, x @ turn


def squared(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


EQUATION = Recipe(lambda: tanh_net(1, 32, 32, 1), places(), physics(), adam(5e-3), solution_error(), steps=500)


FIELD = Recipe(Steps, spirals, squared, adam(5e-3), steps=300)


KINDS = [
    Kind(
        "equation by its residual",
        EQUATION,
        (
            Fault(
                "the interval in millimetres",
                "input too large",
                "https://github.com/pierremtb/PINNs-TF2.0/issues/1",
                m.setting(data=places(1000.0), loss=physics(1000.0), metric=solution_error(1000.0)),
            ),
        ),
    ),
    Kind(
        "learnt field, followed by steps",
        FIELD,
        (
            Fault(
                "steps of 2 instead of 0.05",
                "signal explodes over depth",
                "https://github.com/patrick-kidger/NeuralCDE/issues/2",
                m.setting(model=lambda: Steps(2.0)),
            ),
        ),
    ),
]
