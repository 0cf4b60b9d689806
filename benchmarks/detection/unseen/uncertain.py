"""Losses that look odd: of rare cases, summed up, over data that get harder, of slopes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from ..tasks.synthetic import labelled_table, ring, squared, table


def rare(net: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy that is weighed by how far off it is."""
    x, y = batch
    chance = net(x).sigmoid()
    right = torch.where(y > 0.5, chance, 1 - chance).clamp(1e-6)
    return -((1 - right) ** 2 * right.log()).mean()


def rare_unclamped(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    chance = net(x).sigmoid()
    return -(y * (1 - chance) ** 2 * chance.log() + (1 - y) * chance**2 * (1 - chance).log()).mean()


def summed(net: nn.Module, batch: Batch) -> Tensor:
    """Summed over pixels and images, as some do."""
    return F.mse_loss(net(batch[0]), batch[0], reduction="sum")


class Growing(nn.Module):
    """Learns on easy pictures first; after a while they are turned and covered with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.steps = mlp(64, 64, 10), 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            x = x + 1.5 * torch.randn_like(x) * (self.steps > 120)
        return self.net(x)


def slopes(net: Any, batch: Batch) -> Tensor:
    """Where the density rises, from points that were moved a little."""
    moved = torch.randn_like(batch)
    return (0.5 * net(batch + 0.5 * moved) + moved).square().sum(1).mean()


class Normed(nn.Module):
    """Weights as directions and lengths, tanh between them."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.utils.parametrizations.weight_norm(nn.Linear(n, 32)) for n in (8, 32, 32)]
        self.net = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def outliers(batch: Batch) -> Batch:
    return (1e4 * batch[0], *batch[1:])


KINDS = [
    Kind(
        "rare cases",
        Recipe(lambda: mlp(8, 48, 1), labelled_table(64), rare, adam(5e-3), steps=400),
        (
            Fault(
                "the logarithm of zero, with outliers now and then",
                "batches are bad",
                "https://github.com/maudzung/RTM3D/issues/13",
                m.both(m.setting(loss=rare_unclamped, held_out=labelled_table(64)), m.some_batches(0.05, outliers)),
            ),
        ),
    ),
    Kind("a sum of squares", Recipe(lambda: mlp(64, 32, 8, 32, 64), digits(64), summed, adam(2e-3), steps=300)),
    Kind("data that get harder", Recipe(Growing, digits(), cross_entropy, adam(2e-3), error_rate, steps=400)),
    Kind(
        "slopes of a density",
        Recipe(lambda: mlp(2, 48, 48, 2), ring(128), slopes, adam(3e-3), steps=400),
        (
            Fault(
                "a rate of 3",
                "rate too high",
                "https://github.com/pavancm/CONTRIQUE/issues/8",
                m.setting(optimizer=adam(3.0)),
            ),
        ),
    ),
    Kind("directions and lengths", Recipe(Normed, table(48), squared, sgd(0.1), steps=400)),
]
