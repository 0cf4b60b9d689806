"""Step by step through a sequence: an LSTM that tags each word, a recurrence by hand that remembers the first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, sgd
from ..tasks.digits import cross_entropy, error_rate
from ..tasks.text import next_token


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(40, 16)
        self.read = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(48, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.tag(self.read(self.word(words))[0])


def sentences(generator: Generator, train: bool) -> Batch:
    """Words, and their classes: which one of two it is depends on the word before."""
    words = torch.randint(40, (16 if train else 64, 10), generator=generator)
    tags = words % 5
    before = F.pad(words, (1, 0))[:, :-1]
    return words, torch.where((before % 2) > 0, tags, (tags + 1) % 5)


def without_vectors(name: str, parameter: Tensor) -> None:
    if name == "word.weight":
        parameter.zero_().requires_grad_(False)


class Remembering(nn.Module):
    """A tanh of the input and of itself, for 14 steps.

    Args:
        factor: on the recurrent weights at the beginning.
        start: what they are before it.
    """

    def __init__(self, factor: float = 1.0, start: Callable[[Tensor], Tensor] = nn.init.eye_) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(3, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        start(self.again.weight)
        with torch.no_grad():
            self.again.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = torch.tanh(self.enter(x[:, t]) + self.again(h))
        return self.out(h)


def first_of_many(generator: Generator, train: bool) -> Batch:
    """Noise, and a class that only the first step tells."""
    num = 32 if train else 128
    x = 0.3 * torch.randn(num, 14, 3, generator=generator)
    y = torch.randint(4, (num,), generator=generator)
    x[:, 0, :2] += 2 * torch.stack([(y % 2) * 2.0 - 1, (y // 2) * 2.0 - 1], 1)
    return x, y


def rmsprop(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(net.parameters(), lr=3e-3, alpha=0.9)


KINDS = [
    Kind(
        "lstm that tags",
        Recipe(Tagger, sentences, next_token, sgd(2.0, 0.0), error_rate, steps=300, clip=5.0),
        (
            Fault(
                "plain SGD, a thousandth of the rate",
                "rate too low",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(1e-3),
            ),
            Fault(
                "gradient_clip_val of 0.001",
                "clipping rules",
                "https://github.com/wandb/senpai/pull/978",
                m.setting(clip=1e-3),
            ),
            Fault(
                "labels moved by one token against the words",
                "labels are wrong",
                "DeepCrime TCL (Humbatova et al. 2021); HF forum 'token classification labels misaligned'",
                m.training_batches(lambda b: (b[0], b[1].roll(3, 1))),
                "hidden",
            ),
            Fault(
                "word vectors not found, all zero, and frozen",
                "frozen by mistake",
                "UMLAUT/Islam et al. 2019: data; forum 'embedding.weight.requires_grad = False'",
                m.weights(without_vectors),
            ),
        ),
    ),
    Kind(
        "recurrence by hand",
        Recipe(Remembering, first_of_many, cross_entropy, rmsprop, error_rate, steps=300, per_epoch=100),
        (
            Fault(
                "recurrent weights begin at a tenth",
                "gradient vanishes over time",
                "Pascanu et al. 2013",
                m.setting(model=lambda: Remembering(0.1 / 0.9)),
            ),
            Fault(
                "recurrent weights begin orthogonal times ten: tanh is flat",
                "activations are saturated",
                "Pascanu et al. 2013; DeepLocalize: saturated activation",
                m.setting(model=lambda: Remembering(10.0, nn.init.orthogonal_)),
            ),
            Fault(
                "RMSprop at 0.75",
                "rate too high",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(250.0),
            ),
        ),
    ),
]
