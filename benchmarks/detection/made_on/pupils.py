"""Pupils and questions, bags of words."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.digits import cross_entropy, error_rate

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
        Recipe(Bag, topics, cross_entropy, sgd(0.5, 0.0), error_rate, steps=300),
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
]
