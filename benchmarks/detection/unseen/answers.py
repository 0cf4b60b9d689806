"""Pupils and questions, bags of words, a memory that is looked up."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors, sgd

_ABILITY = torch.randn(60, generator=torch.Generator().manual_seed(21))
_HARDNESS = torch.randn(25, generator=torch.Generator().manual_seed(22))


class Responses(nn.Module):
    """How able each pupil is, how hard each question, and how well it tells pupils apart."""

    def __init__(self) -> None:
        super().__init__()
        self.ability, self.hardness = nn.Parameter(0.1 * torch.randn(60)), nn.Parameter(0.1 * torch.randn(25))
        self.slope = nn.Parameter(torch.zeros(25))

    def forward(self, pupil: Tensor, question: Tensor) -> Tensor:
        return self.slope[question].exp() * (self.ability[pupil] - self.hardness[question])


def exams(generator: Generator, train: bool) -> Batch:
    pupil, question = (torch.randint(n, (128 if train else 512,), generator=generator) for n in (60, 25))
    right = torch.sigmoid(2.5 * (_ABILITY[pupil] - _HARDNESS[question])) > torch.rand(len(pupil), generator=generator)
    return pupil, question, right.float()


def likelihood(net: nn.Module, batch: Batch) -> Tensor:
    """Written by hand."""
    p = torch.sigmoid(net(batch[0], batch[1])).clamp(1e-6, 1 - 1e-6)
    return -(batch[2] * p.log() + (1 - batch[2]) * (1 - p).log()).mean()


class Bag(nn.Module):
    """The mean of the words' vectors, and one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.topic = nn.EmbeddingBag(200, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.topic(self.words(x))


def topics(generator: Generator, train: bool) -> Batch:
    y = torch.randint(4, (32 if train else 128,), generator=generator)
    of_topic = 50 * y[:, None] + torch.randint(50, (len(y), 12), generator=generator)
    anything = torch.randint(200, (len(y), 12), generator=generator)
    return torch.where(torch.rand(len(y), 12, generator=generator) < 0.4, of_topic, anything), y


def classified(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@counts_errors
def misclassified(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]).argmax(-1) != batch[1]).float().mean()


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
        "pupils and questions",
        Recipe(Responses, exams, likelihood, adam(3e-2), likelihood, steps=300),
        (
            Fault(
                "SGD at 0.001, as with sums",
                "rate too low",
                "https://github.com/thunlp/OpenKE/issues/133",
                m.setting(optimizer=sgd(1e-3, 0.0)),
            ),
        ),
    ),
    Kind(
        "topics of bags of words",
        Recipe(Bag, topics, classified, sgd(0.5, 0.0), misclassified, steps=300),
        (
            Fault(
                "zero_grad was left out of the executor",
                "gradients are never cleared",
                "https://github.com/wenet-e2e/wekws/pull/73",
                m.setting(manual=m.without_zero_grad),
            ),
            Fault(
                "a softmax along the batch before the loss",
                "output activation and loss do not fit",
                "https://github.com/DeepReinforcementLearning/DeepReinforcementLearningInAction/issues/32",
                m.setting(loss=lambda net, b: F.cross_entropy(F.softmax(net(b[0]), dim=0), b[1])),
                "subtle",
            ),
        ),
    ),
    Kind(
        "a memory that is looked up",
        Recipe(Memory, pairs, classified, adam(1e-2), misclassified, steps=300),
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
