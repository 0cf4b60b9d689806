"""Regression that is not least squares: quantiles, counts, mixtures, images as functions."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.models import mlp
from ..tasks.synthetic import table

LEVELS = torch.tensor([0.1, 0.5, 0.9])


def pinball(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    over = y - net(x)
    return torch.maximum(LEVELS * over, (LEVELS - 1) * over).mean()


def counts(generator: Generator, train: bool) -> Batch:
    x = torch.randn(32 if train else 256, 4, generator=generator)
    rate = (1.0 + 0.5 * x[:, :1] + torch.sin(x[:, 1:2])).exp()
    return x, torch.poisson(rate, generator=generator)


def poisson(net: nn.Module, batch: Batch) -> Tensor:
    return F.poisson_nll_loss(net(batch[0]), batch[1])


def poisson_error(net: nn.Module, batch: Batch) -> Tensor:
    """Without the clamp an error of the metric would hide how bad a network is."""
    x, y = batch
    return F.poisson_nll_loss(net(x).clamp(-10, 10), y, full=True)


def two_valued(generator: Generator, train: bool) -> Batch:
    """A curve with two answers for each x."""
    x = torch.rand(64 if train else 256, 1, generator=generator) * 4 - 2
    side = torch.randint(2, x.shape, generator=generator) * 2 - 1
    return x, side * (1 + torch.sin(2 * x)) + 0.1 * torch.randn(x.shape, generator=generator)


def mixture(net: nn.Module, batch: Batch) -> Tensor:
    """Negative log density under five normal distributions; below zero once they are narrow."""
    x, y = batch
    weight, mean, log_std = net(x).chunk(3, dim=1)
    log_std = log_std.clamp(-4, 3)
    each = -((y - mean) / log_std.exp()).square() / 2 - log_std - math.log(2 * math.pi) / 2
    return -torch.logsumexp(F.log_softmax(weight, 1) + each, 1).mean()


class Sine(nn.Module):
    """A network of sines, as in SIREN, with its initialization."""

    def __init__(self, frequency: float = 15.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 48), nn.Linear(48, 48), nn.Linear(48, 48)])
        self.last = nn.Linear(48, 1)
        self.frequency = frequency
        with torch.no_grad():
            self.layers[0].weight.uniform_(-1 / 2, 1 / 2)  # type: ignore[operator, union-attr]
            for layer in [*self.layers[1:], self.last]:
                bound = math.sqrt(6 / 48) / frequency
                layer.weight.uniform_(-bound, bound)  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        return self.last(x)


def image(generator: Generator, train: bool) -> Batch:
    at = torch.rand(128, 2, generator=generator) * 2 - 1
    return at, torch.sin(8 * at[:, :1]) * torch.cos(6 * at[:, 1:]) + (at.norm(dim=1, keepdim=True) < 0.6).float()


def squared(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


QUANTILES = Recipe(lambda: mlp(8, 32, 32, 3), table(noise=0.5), pinball, adam(5e-3), steps=500)
COUNTS = Recipe(lambda: mlp(4, 32, 1), counts, poisson, adam(5e-3), poisson_error)
MIXTURE = Recipe(lambda: mlp(1, 32, 32, 15), two_valued, mixture, adam(5e-3), steps=500)
SINES = Recipe(Sine, image, squared, adam(1e-3), steps=400)

KINDS = [
    Kind(
        "quantile regression",
        QUANTILES,
        (
            Fault(
                "two batches in a hundred hold NaN",
                "batches are bad",
                "https://github.com/prs-eth/Marigold/issues/111",
                m.some_batches(0.02, lambda b: (torch.where(torch.arange(8) == 3, math.nan, b[0]), b[1])),
            ),
        ),
    ),
    Kind(
        "counts",
        COUNTS,
        (
            Fault(
                "SGD at a rate of 0.5",
                "rate too high",
                "DeepFD, Cao et al. 2022: learning rate",
                m.setting(optimizer=sgd(0.5)),
            ),
        ),
    ),
    Kind(
        "mixture density",
        MIXTURE,
        (
            Fault(
                "divides by a spread that may be zero",
                "a step is not finite",
                "https://github.com/keras-team/keras/issues/2586",
                m.setting(loss=lambda net, b: (mixture(net, b) + (net(b[0])[:, 10:].relu() * 0).rsqrt().mean() * 0)),
            ),
        ),
    ),
    Kind(
        "sines over coordinates",
        SINES,
        (
            Fault(
                "initialization of a ReLU network",
                "weights begin too large",
                "https://github.com/lucidrains/siren-pytorch/issues/1",
                m.weights(lambda name, p: p.mul_(40) if p.dim() > 1 else None),
            ),
        ),
    ),
]  # fmt: skip
