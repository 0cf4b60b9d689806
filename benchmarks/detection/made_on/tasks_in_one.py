"""Several tasks in one network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.digits import digits
from ..tasks.models import mlp


class TwoHeads(nn.Module):
    """Says which digit it is, and how much ink it has."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(64, 64, 48), nn.ReLU())
        self.digit, self.ink = nn.Linear(48, 10), mlp(48, 16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.digit(h), self.ink(h).squeeze(1)


def _ink(x: Tensor) -> Tensor:
    return (x.square().mean(1) - 1) * 3


def weighted(weight: float = 1.0) -> Any:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        digit, ink = net(batch[0])
        return F.cross_entropy(digit, batch[1]) + weight * (ink - _ink(batch[0])).square().mean()

    return loss


def worse_task(net: nn.Module, batch: Batch) -> Tensor:
    """Errors of the one, relative errors of the other: the sum."""
    digit, ink = net(batch[0])
    truth = _ink(batch[0])
    return (digit.argmax(1) != batch[1]).float().mean() + (ink - truth).square().mean() / truth.var()


def counted_out(net: nn.Module, batch: Batch) -> Tensor:
    """The second loss goes through ``.item()``."""
    digit, ink = net(batch[0])
    return F.cross_entropy(digit, batch[1]) + float((ink - _ink(batch[0])).square().mean())


TWO = Recipe(TwoHeads, digits(), weighted(), adam(3e-3), worse_task, steps=500)

KINDS = [
    Kind(
        "two tasks, one trunk",
        TWO,
        (
            Fault(
                "one task weighted by 1e-6",
                "a part starves",
                "https://arxiv.org/abs/1711.02257",
                m.setting(loss=weighted(1e-6), optimizer=lambda net: torch.optim.SGD(net.parameters(), 0.05, 0.9)),
                "subtle",
            ),
            Fault(
                "one loss passed through item()",
                "graph is cut",
                "https://github.com/guopengf/FL-MRCM/issues/10",
                m.setting(loss=counted_out),
            ),
        ),
    ),
]
