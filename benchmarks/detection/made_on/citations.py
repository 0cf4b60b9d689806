"""Nodes of a graph, each told by its neighbours."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Recipe, adam, counts_errors


@functools.cache
def graph() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of 90 nodes, normalized edges, classes, and an order of the nodes; classes keep to themselves."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(90) % 3
    chance = torch.where(y[:, None] == y[None], 0.15, 0.02)
    upper = (torch.rand(90, 90, generator=generator) < chance).float().triu(1)
    edges = upper + upper.T + torch.eye(90)
    scale = edges.sum(1) ** -0.5
    x = torch.randn(90, 12, generator=generator) + 0.8 * F.one_hot(y, 12).float()
    return x, edges * scale[:, None] * scale[None], y, torch.randperm(90, generator=generator)


def nodes(scale: float = 1.0) -> Data:
    def draw(generator: Generator, train: bool) -> Batch:
        x, edges, y, order = graph()
        some = order[:45][torch.randperm(45, generator=generator)[:30]] if train else order[45:]
        return x * scale, edges, y, some

    return draw


class Convolved(nn.Module):
    def __init__(self, depth: int = 2, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width if i else 12, width) for i in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(edges @ layer(x))
        return self.out(x)


def classified(net: nn.Module, batch: Batch) -> Tensor:
    x, edges, y, some = batch
    return F.cross_entropy(net(x, edges)[some], y[some])


@counts_errors
def misclassified(net: nn.Module, batch: Batch) -> Tensor:
    x, edges, y, some = batch
    return (net(x, edges)[some].argmax(1) != y[some]).float().mean()


KINDS = [
    Kind(
        "graph convolution",
        Recipe(
            Convolved,
            nodes(),
            classified,
            adam(1e-2, weight_decay=5e-4),
            misclassified,
            steps=120,
            per_epoch=20,
        ),
        (
            Fault(
                "Adam at 5",
                "rate too high",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(500.0),
            ),
            Fault(
                "sixteen layers, no skip",
                "gradient vanishes over depth",
                "Li et al. 2018, deeper insights into GCN",
                m.setting(model=lambda: Convolved(16)),
            ),
            Fault(
                "features are kept in 1e-5 units",
                "input too small",
                "UMLAUT: input not normalised (Schoop et al. 2021)",
                m.setting(data=nodes(1e-5)),
            ),
        ),
    ),
]
