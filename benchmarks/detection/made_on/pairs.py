"""Embeddings: pairs, ratings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.digits import digits
from ..tasks.models import mlp


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


PAIRS = Recipe(lambda: mlp(64, 48, 16), digits(48), contrast(), adam(2e-3), unmatched)


RATINGS = Recipe(Factors, ratings, squared, adam(2e-2))


KINDS = [
    Kind(
        "contrastive pairs",
        PAIRS,
        (
            Fault(
                "temperature of 1e-5",
                "loss is badly scaled",
                "https://github.com/google-research/simclr/issues/141",
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
                "https://github.com/microsoft/LoRA/issues/98",
                m.weights(lambda name, p: p.zero_() if name != "bias.weight" else None),
            ),
            Fault(
                "the items' embedding is frozen",
                "frozen by mistake",
                "https://github.com/hamedrab/FOREC/issues/6",
                m.frozen("item."),
                "subtle",
            ),
        ),
    ),
]
