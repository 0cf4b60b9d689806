"""Sets and graphs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.models import mlp
from .pairs import squared


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


SETS = Recipe(Sets, sets, squared, adam(3e-3), steps=500)


NODES = Recipe(Graph, community, classes, adam(1e-2), wrong, steps=300)


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


KINDS = [
    Kind(
        "deep sets",
        SETS,
        (
            Fault(
                "no_grad() around the encoder",
                "graph is cut",
                "https://github.com/rll-research/cic/issues/5",
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
                "https://github.com/benedekrozemberczki/AttentionWalk/issues/9",
                lambda r: replace(r, model=lambda: Powers(12)),
            ),
        ),
    ),
]
