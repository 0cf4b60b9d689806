"""Numbers for which somebody pays: bounds of a price, ratings by factors."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Recipe, sgd
from ..tasks.models import mlp

_QUANTILES = torch.tensor([[0.1, 0.5, 0.9]])


def houses(scale: float = 1.0) -> Data:
    """A price whose noise depends on the house."""

    def draw(generator: Generator, train: bool) -> Batch:
        x = torch.randn(64 if train else 256, 7, generator=generator)
        noise = (0.3 + 0.3 * x[:, 3:4].abs()) * torch.randn(len(x), 1, generator=generator)
        y = 2 * x[:, :1] + x[:, 1:2] * x[:, 2:3] + noise
        return x, y * scale

    return draw


def pinball(net: nn.Module, batch: Batch) -> Tensor:
    error = batch[1] - net(batch[0])
    return torch.maximum(_QUANTILES * error, (_QUANTILES - 1) * error).mean()


def relative_pinball(net: nn.Module, batch: Batch) -> Tensor:
    return pinball(net, batch) / batch[1].abs().mean()


class Factors(nn.Module):
    """Who likes what, as a product of factors, with a bias for each and one for all."""

    def __init__(self, std: float = 0.3) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, 8), nn.Embedding(40, 8)
        self.user_bias, self.item_bias = nn.Embedding(30, 1), nn.Embedding(40, 1)
        for factors in (self.user, self.item):
            nn.init.normal_(factors.weight, std=std)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)
        self.mean = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        user, item = batch[:2]
        fit = (self.user(user) * self.item(item)).sum(1)
        return fit + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0] + self.mean


@functools.cache
def tastes() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(30, 3, generator=generator) @ torch.randn(3, 40, generator=generator) + 3


def ratings(generator: Generator, train: bool) -> Batch:
    num = 128 if train else 512
    user, item = (torch.randint(n, (num,), generator=generator) for n in (30, 40))
    return user, item, tastes()[user, item] + 0.1 * torch.randn(num, generator=generator)


def misrated(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch) - batch[2]).square().mean()


def adagrad(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(net.parameters(), lr=0.15)


KINDS = [
    Kind(
        "bounds of a price",
        Recipe(lambda: mlp(7, 48, 48, 3), houses(), pinball, sgd(0.2, 0.0), relative_pinball, steps=300),
        (
            Fault(
                "prices in dollars",
                "targets too large",
                "UMLAUT (Schoop et al. 2021); StackOverflow: regression targets not scaled",
                m.setting(data=houses(2e5)),
            ),
            Fault(
                "plain SGD, a thousandth of the rate",
                "rate too low",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(1e-3),
            ),
            Fault(
                "plain SGD, two hundred times the rate",
                "rate too high",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(200.0),
            ),
        ),
    ),
    Kind(
        "ratings by factors and biases",
        Recipe(Factors, ratings, misrated, adagrad, misrated, steps=300),
        (
            Fault(
                "the factors begin at zero",
                "weights begin at zero",
                "DeepCrime WCI: zeros (Humbatova et al. 2021)",
                m.setting(model=lambda: Factors(0.0)),
            ),
            Fault(
                "Adagrad, a hundred times the rate",
                "rate too high",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(100.0),
            ),
            Fault(
                "Adagrad, a thousandth of the rate",
                "rate too low",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(1e-3),
            ),
        ),
    ),
]
