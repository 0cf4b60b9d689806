"""Words and things by number: reviews through convolutions, neighbours in a text, fields that are clicked on."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, counts_errors
from ..tasks.digits import cross_entropy, error_rate


class Reader(nn.Module):
    """Convolutions of three widths over words, the largest of each, and one layer."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.wide = nn.ModuleList(nn.Conv1d(16, 16, width, padding=width // 2) for width in (2, 3, 4))
        self.drop, self.verdict = nn.Dropout(dropout), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        words = self.words(x).transpose(1, 2)
        return self.verdict(self.drop(torch.cat([F.relu(wide(words)).amax(2) for wide in self.wide], 1)))


def reviews(generator: Generator, train: bool) -> Batch:
    """Somewhere two words stand side by side: in which order?"""
    num = 32 if train else 128
    y = torch.randint(2, (num,), generator=generator)
    x = torch.randint(60, (num, 20), generator=generator)
    place, row = torch.randint(18, (num,), generator=generator), torch.arange(num)
    x[row, place] = torch.where(y > 0, 7, 8)
    x[row, place + 1] = torch.where(y > 0, 8, 7)
    return x, y


def ends_in_softmax(net: nn.Module) -> None:
    net.register_forward_hook(lambda module, args, out: torch.softmax(out, 1))


class Neighbours(nn.Module):
    """Two vectors for each word: as the word in the middle, and as a neighbour."""

    def __init__(self, std: float = 0.3) -> None:
        super().__init__()
        self.middle, self.beside = nn.Embedding(60, 16), nn.Embedding(60, 16)
        nn.init.normal_(self.middle.weight, std=std)
        nn.init.zeros_(self.beside.weight)

    def forward(self, word: Tensor, others: Tensor) -> Tensor:
        return (self.middle(word)[:, None] * self.beside(others)).sum(2)


def windows(generator: Generator, train: bool) -> Batch:
    """A word, with one that stands near it before four that are drawn by chance."""
    num = 128 if train else 512
    word = torch.randint(60, (num,), generator=generator)
    near = (word // 6) * 6 + torch.randint(6, (num,), generator=generator)
    chance = torch.randint(60, (num, 4), generator=generator)
    return word, torch.cat([near[:, None], chance], 1)


def negative_sampling(net: nn.Module, batch: Batch) -> Tensor:
    score = net(*batch)
    return F.softplus(-score[:, 0]).mean() + F.softplus(score[:, 1:]).mean()


@counts_errors
def not_first(net: nn.Module, batch: Batch) -> Tensor:
    score = net(*batch)
    return (score[:, :1] <= score[:, 1:].amax(1, keepdim=True)).float().mean()


class Factors(nn.Module):
    """A factorization machine: a weight for each value of a field, and products of vectors for each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.paired = nn.Embedding(60, 1), nn.Embedding(60, 6)
        nn.init.zeros_(self.alone.weight)
        nn.init.normal_(self.paired.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        paired = self.paired(x)
        return self.alone(x).sum((1, 2)) + 0.5 * (paired.sum(1) ** 2 - (paired**2).sum(1)).sum(1)


def clicks(generator: Generator, train: bool) -> Batch:
    """Four fields of fifteen values each; two of them matter together, a third by itself."""
    x = torch.randint(15, (64 if train else 256, 4), generator=generator) + torch.arange(4) * 15
    value = (x * 13 % 7) - 3.0
    return x, (value[:, 0] * value[:, 1] / 3 + value[:, 2] > 0).float()


def clicked(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


def misjudged(net: nn.Module, batch: Batch) -> Tensor:
    return ((net(batch[0]) > 0) != (batch[1] > 0.5)).float().mean()


KINDS = [
    Kind("factorization machine", Recipe(Factors, clicks, clicked, adam(2e-2), misjudged, steps=250)),
    Kind(
        "words by convolution",
        Recipe(Reader, reviews, cross_entropy, adamw(3e-3), error_rate, steps=300),
        (
            Fault(
                "softmax in the model before CrossEntropyLoss, and AdamW at 3e-5",
                "rate too low",
                "UMLAUT, Schoop et al. 2021: softmax + cross entropy",
                m.both(m.rate(0.01), m.model(ends_in_softmax)),
            ),
            Fault(
                "weight decay of 30 in AdamW",
                "weight decay rules",
                "DeepCrime, Humbatova et al. 2021: weight regularisation",
                m.setting(optimizer=adamw(3e-3, weight_decay=30.0)),
            ),
            Fault(
                "everything but the last layer is frozen, from scratch",
                "frozen by mistake",
                "https://github.com/pytorch/vision/issues/2164",
                m.frozen("words.", "wide."),
            ),
            Fault(
                "dropout of 0.98",
                "too much regularization",
                "DeepCrime, Humbatova et al. 2021: dropout rate",
                m.setting(model=lambda: Reader(dropout=0.98)),
                "subtle",
            ),
        ),
    ),
    Kind(
        "words and neighbours",
        Recipe(
            Neighbours,
            windows,
            negative_sampling,
            lambda net: torch.optim.Adagrad(net.parameters(), 0.3),
            not_first,
            steps=250,
        ),
        (
            Fault(
                "both tables begin at zero",
                "weights begin at zero",
                "DeepCrime, Humbatova et al. 2021: weights that begin at zero",
                m.setting(model=lambda: Neighbours(std=0.0)),
            ),
            Fault(
                "Adadelta's rate 1e-3 (its default is 1)",
                "rate too low",
                "https://github.com/tensorflow/tensorflow/issues/32950",
                m.setting(optimizer=lambda net: torch.optim.Adadelta(net.parameters(), 1e-3)),
            ),
            Fault(
                "the output table is not in the optimizer",
                "parameters in no optimizer",
                "https://github.com/huggingface/pytorch-openai-transformer-lm/pull/6",
                m.setting(optimizer=lambda net: torch.optim.Adagrad(net.middle.parameters(), 0.3)),
            ),
        ),
    ),
]
