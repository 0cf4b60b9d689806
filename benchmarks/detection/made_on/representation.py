"""Embeddings, pairs, sets and graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.digits import digits
from .dense import mlp


def contrast(temperature: float = 0.2) -> Any:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        one, other = (F.normalize(net(x + 0.5 * torch.randn_like(x)), dim=1) for _ in "12")
        return F.cross_entropy(one @ other.T / temperature, torch.arange(len(x)))

    return loss


def unmatched(net: nn.Module, batch: Batch) -> Tensor:
    """How often the other view of an image is not the nearest one."""
    x = batch[0]
    one, other = (F.normalize(net(x + 0.5 * torch.randn_like(x)), dim=1) for _ in "12")
    return ((one @ other.T).argmax(1) != torch.arange(len(x))).float().mean()


class Factors(nn.Module):
    """Who likes what: an inner product of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(60, 8), nn.Embedding(40, 8)
        self.bias = nn.Embedding(40, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pair: Tensor) -> Tensor:
        user, item = pair.unbind(1)
        return (self.user(user) * self.item(item)).sum(1) + self.bias(item).squeeze(1)


TASTE = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
TRAITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))


def ratings(generator: Generator, train: bool) -> Batch:
    pair = torch.stack([torch.randint(n, (64,), generator=generator) for n in (60, 40)], 1)
    score = (TASTE[pair[:, 0]] * TRAITS[pair[:, 1]]).sum(1)
    return pair, score + 0.1 * torch.randn(64, generator=generator)


def squared(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


class Sets(nn.Module):
    """Sums what it sees of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp(2, 32, 32), mlp(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).mean(1)).squeeze(1)


def sets(generator: Generator, train: bool) -> Batch:
    x = torch.randn(32 if train else 256, 10, 2, generator=generator)
    return x, (x[..., 0] * x[..., 1]).sum(1) / 3 + x[..., 0].amax(1)


class Graph(nn.Module):
    """Two graph convolutions over one graph, given with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, adjacency = given
        return adjacency @ self.second(F.relu(adjacency @ self.first(x)))


def community(generator: Generator, train: bool) -> Batch:
    """A graph of 60 nodes in three communities, with weak features; which is which is to be said."""
    label = torch.randint(3, (60,), generator=generator)
    chance = torch.where(label[:, None] == label, 0.25, 0.03)
    edges = (torch.rand(60, 60, generator=generator) < chance).float().triu(1)
    adjacency = edges + edges.T + torch.eye(60)
    degree = adjacency.sum(1).rsqrt()
    x = torch.randn(60, 8, generator=generator) + 0.8 * F.one_hot(label, 8)
    return (x, degree[:, None] * adjacency * degree), label


def classes(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@counts_errors
def wrong(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]).argmax(1) != batch[1]).float().mean()


PAIRS = Recipe(lambda: mlp(64, 48, 16), digits(48), contrast(), adam(2e-3), unmatched)
RATINGS = Recipe(Factors, ratings, squared, adam(2e-2))
SETS = Recipe(Sets, sets, squared, adam(3e-3), steps=500)
NODES = Recipe(Graph, community, classes, adam(1e-2), wrong, steps=300)

KINDS = [
    Kind(
        "contrastive pairs",
        PAIRS,
        (
            Fault(
                "temperature of 1e-5",
                "loss is badly scaled",
                "https://github.com/sthalles/SimCLR/issues/16",
                m.setting(loss=contrast(1e-5)),
                "subtle",
            ),
        ),
    ),
    Kind(
        "ratings by factors",
        RATINGS,
        (
            Fault(
                "factors begin at zero",
                "weights begin at zero",
                "https://github.com/pytorch/pytorch/issues/8331",
                m.weights(lambda name, p: p.zero_() if name != "bias.weight" else None),
            ),
            Fault(
                "the items' embedding is frozen",
                "frozen by mistake",
                "https://discuss.pytorch.org/t/nn-embedding-from-pretrained-freeze/24131",
                m.frozen("item."),
                "subtle",
            ),
        ),
    ),
    Kind(
        "deep sets",
        SETS,
        (
            Fault(
                "no_grad() around the encoder",
                "graph is cut",
                "https://discuss.pytorch.org/t/with-torch-no-grad-in-forward/60001",
                lambda r: replace(r, model=Cut),
            ),
        ),
    ),
    Kind(
        "graph convolutions",
        NODES,
        (
            Fault(
                "adjacency is not normalized, twelve layers",
                "signal explodes over depth",
                "https://github.com/tkipf/pygcn/issues/51",
                lambda r: replace(r, model=lambda: Powers(12)),
            ),
        ),
    ),
]


class Cut(Sets):
    """The encoder runs under ``no_grad``."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.each(x).mean(1)
        return self.all(seen).squeeze(1)


class Powers(Graph):
    """Neighbours are summed up, again and again."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, adjacency = given
        h = self.first(x)
        for _ in range(self.times):
            h = (adjacency > 0).float() @ F.relu(h)
        return self.second(h)
