"""Who is on which side, by a margin, and who lasts longer, by rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..kind import Kind
from ..recipe import Batch, Recipe, adamw, sgd


def two_clouds(generator: Generator, train: bool) -> Batch:
    num = 32 if train else 200
    y = torch.randint(2, (num,), generator=generator) * 2.0 - 1
    return torch.randn(num, 20, generator=generator) + y[:, None] * torch.linspace(-0.6, 0.6, 20), y


def hinge(net: Any, batch: Batch) -> Tensor:
    """What is missing to a margin of one, and the square of the weights."""
    x, y = batch
    return F.relu(1 - y * net(x)[:, 0]).mean() + 0.01 * (net.weight**2).sum()


def wrong_side(net: nn.Module, batch: Batch) -> Tensor:
    return (torch.sign(net(batch[0])[:, 0]) != batch[1]).float().mean()


def patients(generator: Generator, train: bool) -> Batch:
    """Features, how long each was seen, whether that was the end, and the true risk."""
    num = 64 if train else 256
    x = torch.randn(num, 10, generator=generator)
    risk = x[:, 0] - x[:, 1] + 0.5 * x[:, 2] ** 2
    lasted = -torch.log(torch.rand(num, generator=generator)) * torch.exp(-risk)
    left = torch.rand(num, generator=generator) * 4
    return x, torch.minimum(lasted, left), (lasted <= left).float(), risk


def partial_likelihood(net: nn.Module, batch: Batch) -> Tensor:
    """Cox: the one that ends is the one of highest risk among those that last longer; some only left."""
    x, seen, ended, _ = batch
    order = seen.argsort(descending=True)
    risk = net(x)[:, 0][order]
    return -((risk - torch.logcumsumexp(risk, 0)) * ended[order]).sum() / ended.sum().clamp(min=1)


def in_wrong_order(net: nn.Module, batch: Batch) -> Tensor:
    """Share of pairs that are put in the other order than that of their true risks."""
    said, true = net(batch[0])[:, 0], batch[3]
    return ((said[:, None] > said[None]) != (true[:, None] > true[None])).float().mean()


def self_normalizing() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 1))


KINDS = [
    Kind(
        "linear machine, hinge",
        Recipe(lambda: nn.Linear(20, 1), two_clouds, hinge, sgd(0.05, 0.0), wrong_side, steps=200),
    ),
    Kind(
        "survival of patients",
        Recipe(
            self_normalizing,
            patients,
            partial_likelihood,
            adamw(5e-3, weight_decay=0.01),
            in_wrong_order,
            steps=250,
        ),
    ),
]
