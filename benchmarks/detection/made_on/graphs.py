"""Graphs with attention, and with plain sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.models import mlp
from .sets import classes, community, wrong


class Attentive(nn.Module):
    """Graph attention, written out."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 3)
        self.score, self.dim = nn.Linear(32, 2), dim

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, adjacency = given
        h = self.first(x)
        to, of = self.score(h).unbind(1)
        scores = F.leaky_relu(to[:, None] + of).masked_fill(adjacency == 0, -1e9)
        return self.second(F.elu(torch.softmax(scores, self.dim) @ h))


class Summing(nn.Module):
    """Sums over neighbours, as they are: workable, and not small."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(8, 32, 32), mlp(32, 32, 3)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, adjacency = given
        near = (adjacency > 0).float()
        return self.second(near @ F.relu(self.first(near @ x)))


def in_one_class(batch: Batch) -> Batch:
    return batch[0], torch.zeros_like(batch[1])


KINDS = [
    Kind(
        "graph attention",
        Recipe(Attentive, community, classes, adam(1e-2), wrong, steps=300),
        (
            Fault(
                "labels all of one class by a wrong column",
                "labels are wrong",
                "Humbatova et al. 2020, taxonomy: wrong labels",
                m.training_batches(in_one_class),
                "hidden",
            ),
        ),
    ),
    Kind(
        "sums over neighbours",
        Recipe(Summing, community, classes, adam(3e-3), wrong, steps=400),
        (
            Fault(
                "SGD at a rate of 1",
                "rate too high",
                "https://github.com/danielegrattarola/spektral/issues/21",
                m.setting(optimizer=sgd(1.0)),
            ),
        ),
    ),
]
