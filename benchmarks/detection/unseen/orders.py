"""Things that are put in order: by a soft permutation, by thresholds, by pointers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Loss, Recipe, adam, counts_errors, sgd
from ..tasks.models import mlp


class Permutation(nn.Module):
    """Which number goes to which place: rows and columns are normalized by turns, until both sum to one (Sinkhorn)."""

    def __init__(self, temperature: float = 0.3, *, in_logarithms: bool = True) -> None:
        super().__init__()
        self.net = mlp(1, 64, 5)
        self.temperature, self.in_logarithms = temperature, in_logarithms

    def forward(self, x: Tensor) -> Tensor:
        score = self.net(x[..., None]) / self.temperature
        if not self.in_logarithms:
            return _normalized(score.exp())
        for _ in range(10):
            score = score - score.logsumexp(1, keepdim=True)
            score = score - score.logsumexp(2, keepdim=True)
        return score.exp()


def _normalized(weight: Tensor) -> Tensor:
    for _ in range(10):
        weight = weight / weight.sum(1, keepdim=True)
        weight = weight / weight.sum(2, keepdim=True)
    return weight


def shuffled(generator: Generator, train: bool) -> Batch:
    x = torch.rand(64 if train else 256, 5, generator=generator)
    return x, x.sort(1)[0]


def not_sorted(net: nn.Module, batch: Batch) -> Tensor:
    """How far the numbers are from the sorted ones, once the permutation has moved them."""
    return ((torch.einsum("bij,bi->bj", net(batch[0]), batch[0]) - batch[1]) ** 2).mean()


@counts_errors
def misplaced(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]).argmax(1) != batch[0].argsort(1)).float().mean()


class Ages(nn.Module):
    """One score, and five thresholds that it may be above (CORAL)."""

    def __init__(self, *, squashed: bool = False) -> None:
        super().__init__()
        self.features, self.score = mlp(10, 48, 48, last=nn.ReLU()), nn.Linear(48, 1, bias=False)
        self.thresholds = nn.Parameter(torch.linspace(1, -1, 5))
        self.squashed = squashed

    def forward(self, x: Tensor) -> Tensor:
        above = self.score(self.features(x)) + self.thresholds
        return torch.sigmoid(above) if self.squashed else above


def people(generator: Generator, train: bool) -> Batch:
    """Features, and which of six groups of age they belong to."""
    x = torch.randn(64 if train else 256, 10, generator=generator)
    age = x[:, 0] * 1.2 + torch.sin(2 * x[:, 1]) + 0.5 * x[:, 2] * x[:, 3]
    age = age + 0.1 * torch.randn(len(x), generator=generator)
    return x, torch.bucketize(age, torch.tensor([-1.5, -0.7, 0.0, 0.7, 1.5]))


def each_threshold(sign: float = 1.0) -> Loss:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        above = (batch[1][:, None] > torch.arange(5)[None]).float()
        return sign * F.binary_cross_entropy_with_logits(net(batch[0]), above)

    return loss


def groups_off(net: Any, batch: Batch) -> Tensor:
    above = net(batch[0]) > (0.5 if net.squashed else 0.0)
    return (above.sum(1) - batch[1]).abs().float().mean()


class Pointers(nn.Module):
    """Reads six numbers, then points at one after the other, each once."""

    def __init__(self, width: int = 48, *, hides_next: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(1, width)
        self.read, self.write = (nn.LSTM(width, width, batch_first=True) for _ in range(2))
        self.key, self.question, self.score = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.hides_next = hides_next

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.enter(x[..., None])
        read, state = self.read(h)
        before = h.gather(1, y[:, :-1, None].expand(-1, -1, h.shape[-1]))
        written, _ = self.write(torch.cat([torch.zeros_like(h[:, :1]), before], 1), state)
        score = self.score(torch.tanh(self.key(read)[:, None] + self.question(written)[:, :, None]))[..., 0]
        used = F.one_hot(y, x.shape[1]).cumsum(1).bool()
        if self.hides_next:
            return score.masked_fill(used, -math.inf)
        return score.masked_fill(F.pad(used[:, :-1], (0, 0, 1, 0)), -1e4)


def numbers(generator: Generator, train: bool) -> Batch:
    x = torch.rand(48 if train else 192, 6, generator=generator) * 4 - 2
    return x, x.argsort(1)


def pointed(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(*batch).transpose(1, 2), batch[1])


@counts_errors
def mispointed(net: nn.Module, batch: Batch) -> Tensor:
    return (net(*batch).argmax(-1) != batch[1]).float().mean()


KINDS = [
    Kind(
        "a permutation is learnt",
        Recipe(Permutation, shuffled, not_sorted, adam(1e-2), misplaced, steps=300),
        (
            Fault(
                "exponentials outside of the logarithm, a temperature of 0.001",
                "a step is not finite",
                "https://github.com/PythonOT/POT/pull/336",
                m.setting(model=lambda: Permutation(0.001, in_logarithms=False)),
            ),
            Fault(
                "a temperature of 1e-5",
                "output is saturated",
                "https://github.com/Thinklab-SJTU/ThinkMatch/issues/27",
                m.setting(model=lambda: Permutation(1e-5)),
                "subtle",
            ),
            Fault(
                "SGD at 1e-5 in place of Adam",
                "rate too low",
                "Islam et al. 2019: optimizer",
                m.setting(optimizer=sgd(1e-5, 0.0)),
            ),
        ),
    ),
    Kind(
        "ages in order",
        Recipe(Ages, people, each_threshold(), adam(3e-3), groups_off, steps=250),
        (
            Fault(
                "sigmoid in forward and in the loss",
                "output activation and loss do not fit",
                "Humbatova et al. 2020, taxonomy: wrong activation; https://github.com/Raschka-research-group/coral-pytorch",
                m.setting(model=lambda: Ages(squashed=True)),
            ),
            Fault(
                "the likelihood itself is minimized",
                "loss is maximized",
                "https://github.com/Raschka-research-group/coral-cnn/issues/9",
                m.setting(loss=each_threshold(-1.0)),
            ),
            Fault(
                "ages rolled by one place against the rows: an unnamed join",
                "labels are wrong",
                "Humbatova et al. 2020: wrong labels; StackOverflow: shuffled X but not y",
                m.training_batches(lambda b: (b[0], b[1].roll(1))),
                "hidden",
            ),
        ),
    ),
    Kind(
        "pointers that sort",
        Recipe(Pointers, numbers, pointed, adam(5e-3), mispointed, steps=300, clip=2.0),
        (
            Fault(
                "the mask hides the element that is next as well: log of zero",
                "a step is not finite",
                "https://github.com/allenai/allennlp/issues/890",
                m.setting(model=lambda: Pointers(hides_next=True)),
            ),
            Fault(
                "argsort of argsort: ranks in place of the order",
                "labels are wrong",
                "StackOverflow: argsort twice gives ranks; Humbatova et al. 2020: wrong labels",
                m.training_batches(lambda b: (b[0], b[1].argsort(1))),
                "hidden",
            ),
            Fault(
                "RMSprop at 1e-6",
                "rate too low",
                "DeepFD, Cao et al. 2022: learning rate",
                m.setting(optimizer=lambda net: torch.optim.RMSprop(net.parameters(), 1e-6)),
            ),
        ),
    ),
]
