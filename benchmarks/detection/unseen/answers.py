"""Answers from a memory that is looked up."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.digits import cross_entropy, error_rate


class Memory(nn.Module):
    """Writes pairs down, and looks one of them up by its key."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values, self.query = nn.Embedding(16, 16), nn.Embedding(8, 16), nn.Embedding(16, 16)
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.keys(x[:, 0:-1:2]), self.values(x[:, 1::2] % 8)
        shares = F.softmax(torch.bmm(keys, self.query(x[:, -1])[:, :, None]) / 4, dim=1)
        return self.out((shares * values).sum(1))


def pairs(generator: Generator, train: bool) -> Batch:
    """Four keys with a value each, and one of the keys again."""
    num = 64 if train else 256
    keys = torch.rand(num, 16, generator=generator).argsort(1)[:, :4]
    values, asked = (torch.randint(n, s, generator=generator) for n, s in ((8, (num, 4)), (4, (num, 1))))
    x = torch.cat([torch.stack([keys, values], 2).flatten(1), keys.gather(1, asked)], 1)
    return x, values.gather(1, asked)[:, 0]


KINDS = [
    Kind(
        "a memory that is looked up",
        Recipe(Memory, pairs, cross_entropy, adam(1e-2), error_rate, steps=300),
        (
            Fault(
                "keys and queries begin forty times too large",
                "attention is saturated",
                "https://github.com/motokimura/capsnet_pytorch/pull/1",
                m.weights(lambda name, p: p.mul_(40) if name.startswith(("keys", "query")) else None),
            ),
        ),
    ),
]
