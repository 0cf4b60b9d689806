"""Who lasts longer, who likes what, how many; bags of things."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors, sgd
from ..tasks.digits import digits
from ..tasks.models import mlp
from ..tasks.synthetic import table


def hazards(net: nn.Module, batch: Batch) -> Tensor:
    """The one that ends next is the one of highest risk among those that are left."""
    x, lasted = batch
    risk = net(x[lasted.argsort(0, descending=True).squeeze(1)]).squeeze(1)
    return -(risk - risk.logcumsumexp(0)).mean()


def lifetimes(generator: Generator, train: bool) -> Batch:
    x, y = table(48, 6)(generator, train)
    return x[:48], (-y + 0.3 * torch.randn(y.shape, generator=generator))[:48]


class Likes(nn.Module):
    def __init__(self, last: Any = None) -> None:
        super().__init__()
        self.who, self.what, self.bias = nn.Embedding(50, 8), nn.Embedding(30, 8), nn.Embedding(30, 1)
        self.last = last or nn.Identity()
        for one in (self.who, self.what):
            nn.init.normal_(one.weight, std=0.3)
        nn.init.zeros_(self.bias.weight)

    def forward(self, pair: Tensor) -> Tensor:
        who, what = pair.unbind(1)
        return self.last((self.who(who) * self.what(what)).sum(1) + self.bias(what).squeeze(1))


def likes(generator: Generator, train: bool) -> Batch:
    """Most people like little."""
    pair = torch.stack([torch.randint(n, (96,), generator=generator) for n in (50, 30)], 1)
    return pair, (torch.sin(1.3 * pair[:, 0] + 0.7 * (pair[:, 1] % 4) ** 2) > 0.7).float()


def liked(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


@counts_errors
def misjudged(net: nn.Module, batch: Batch) -> Tensor:
    out = net(batch[0])
    middle = 0.0 if isinstance(net.last, nn.Identity) else 0.5  # type: ignore[union-attr]
    return ((out > middle).float() != batch[1]).float().mean()


def how_many(generator: Generator, train: bool) -> Batch:
    x, y = table(48, 8)(generator, train)
    return x, F.softplus(2 * y + 2)


def counted(net: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(net(batch[0]), batch[1])


class Bag(nn.Module):
    """Looks at eight digits and says whether a nine is among them."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.weigh, self.say = mlp(64, 32, 24), mlp(24, 12, 1), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.see(x))
        return self.say((h * self.weigh(h).softmax(1)).sum(1)).squeeze(1)


def bags(generator: Generator, train: bool) -> Batch:
    x, y = digits(32 * 6 if train else 64)(generator, train)
    x, y = x[: len(x) // 6 * 6].view(-1, 6, 64), y[: len(y) // 6 * 6].view(-1, 6)
    return x, (y == 9).any(1).float()


def said(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


KINDS = [
    Kind(
        "who lasts longer",
        Recipe(lambda: mlp(6, 32, 1), lifetimes, hazards, sgd(0.05), steps=300),
        (
            Fault(
                "a rate a hundred times too high",
                "rate too high",
                "https://github.com/PathologyDataScience/SurvivalNet/pull/6",
                m.setting(optimizer=sgd(20.0)),
            ),
        ),
    ),
    Kind(
        "who likes what",
        Recipe(Likes, likes, liked, adam(2e-2), misjudged, steps=400),
        (
            Fault(
                "a sigmoid before a loss of raw scores",
                "output activation and loss do not fit",
                "https://github.com/yudi-mars/daisyRec/pull/15",
                m.setting(model=lambda: Likes(nn.Sigmoid())),
                "subtle",
            ),
        ),
    ),
    Kind(
        "how many",
        Recipe(lambda: mlp(8, 48, 32, 1), how_many, counted, adam(3e-3), steps=300),
        (
            Fault(
                "a ReLU at the end that begins below zero",
                "units are dead",
                "https://github.com/ProteomicsML/ProteomicsML/pull/203",
                m.both(
                    m.setting(model=lambda: mlp(8, 48, 32, 1, last=nn.ReLU())),
                    m.weights(lambda name, p: p.fill_(-3.0) if name == "4.bias" else None),
                ),
            ),
        ),
    ),
    Kind("bags of digits", Recipe(Bag, bags, said, adam(3e-3), steps=300)),
]
