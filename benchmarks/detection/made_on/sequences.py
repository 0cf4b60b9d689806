"""Sequences: attention without a softmax, a state space, vectors of symbols."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, sgd
from ..tasks.text import next_token, text, vocabulary


class LinearAttention(nn.Module):
    """Attention as a running sum, with output weights that are the embedding's."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary(), width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.place = nn.Parameter(0.02 * torch.randn(24, width))
        self.three = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.mix = nn.ModuleList(nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for index in range(2):
            q, k, v = self.three[index](self.norms[2 * index](x)).chunk(3, -1)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            pairs = (k[..., None] * v[..., None, :]).cumsum(1)
            x = x + (q[..., None] * pairs).sum(2) / (q * k.cumsum(1)).sum(-1, keepdim=True)
            x = x + self.mix[index](self.norms[2 * index + 1](x))
        return self.norms[4](x) @ self.embed.weight.T


class StateSpace(nn.Module):
    """A linear recurrence in each of 24 channels, unrolled as a convolution, and a gate behind it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.enter, self.gate, self.head = nn.Linear(3, width), nn.Linear(width, 2 * width), nn.Linear(width, 3)
        self.decay = nn.Parameter(torch.linspace(0.5, 4.0, width))

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        length = u.shape[1]
        kernel = torch.sigmoid(self.decay) ** torch.arange(length - 1, -1, -1.0)[:, None]
        state = (u * kernel).sum(1)
        return self.head(F.glu(self.gate(F.gelu(state)), -1))


def rhythm(generator: Generator, train: bool) -> Batch:
    """Three channels in noise; one of them rises."""
    y = torch.randint(3, (32 if train else 128,), generator=generator)
    x = 0.7 * torch.randn(len(y), 20, 3, generator=generator)
    x[torch.arange(len(y)), :, y] += torch.linspace(-1, 1, 20)
    return x, y


def classes(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


class Vectors(nn.Module):
    """What stands beside a symbol, by two tables of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.middle, self.beside = nn.Embedding(vocabulary(), 16), nn.Embedding(vocabulary(), 16)
        for table in (self.middle, self.beside):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (self.middle(one) * self.beside(other)).sum(-1)


def neighbours(generator: Generator, train: bool) -> Batch:
    """A symbol, the next one, and one from somewhere else."""
    x, y = text()(generator, train)
    x, y = x.flatten(), y.flatten()
    return x, y, y[torch.randperm(len(y), generator=generator)]


def told_apart(net: nn.Module, batch: Batch) -> Tensor:
    one, real, other = batch
    return -F.logsigmoid(net(one, real)).mean() - F.logsigmoid(-net(one, other)).mean()


KINDS = [
    Kind(
        "attention without a softmax",
        Recipe(LinearAttention, text(), next_token, adamw(3e-3), steps=300),
        (
            Fault(
                "embedding times the root of its width twice",
                "weights begin too large",
                "https://github.com/facebookresearch/fairseq/issues/47",
                m.weights(lambda name, p: p.mul_(32.0) if name == "embed.weight" else None),
            ),
            Fault(
                "zero_grad is missing",
                "gradients are never cleared",
                "https://github.com/snakers4/silero-vad/pull/699",
                m.setting(manual=m.without_zero_grad),
            ),
        ),
    ),
    Kind(
        "state space",
        Recipe(StateSpace, rhythm, classes, adam(5e-3), steps=300),
        (
            Fault(
                "features as they were read",
                "input too large",
                "https://github.com/alibaba/EasyRec/issues/23",
                m.inputs(lambda x: 3000 * x + 20_000),
            ),
        ),
    ),
    Kind(
        "vectors of symbols",
        Recipe(Vectors, neighbours, told_apart, adam(1e-2), steps=300),
        (
            Fault(
                "clipped at a thousandth, with SGD",
                "clipping rules",
                "https://github.com/facebookresearch/Mask2Former/issues/148",
                m.setting(clip=1e-3, optimizer=sgd(0.5)),
            ),
        ),
    ),
]
