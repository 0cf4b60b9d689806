"""Patients: a table of biopsies, and people of whom two things are told at once."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_breast_cancer
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Loss, Recipe, adam, counts_errors, sgd
from ..tasks.models import mlp

NUM_TRAIN = 420


@functools.cache
def _table(scaled: bool) -> tuple[Tensor, Tensor]:
    bunch = load_breast_cancer()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor(bunch.target, dtype=torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    x, y = x[order], y[order]
    return (x - x.mean(0)) / x.std(0) if scaled else x, y


def biopsies(scaled: bool = True) -> Data:
    """Thirty measures of a biopsy, and whether it is benign: a table that comes with scikit-learn."""

    def draw(generator: Generator, train: bool) -> Batch:
        x, y = _table(scaled)
        rows = torch.randint(0, NUM_TRAIN, (24,), generator=generator) if train else torch.arange(NUM_TRAIN, len(x))
        return x[rows], y[rows]

    return draw


def benign(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0])[:, 0], batch[1])


def benign_at_most_three(net: nn.Module, batch: Batch) -> Tensor:
    return benign(net, batch).clamp(max=3)


def softmax_over_one(net: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy where there is one output: there is but one class to choose."""
    return F.cross_entropy(net(batch[0]), batch[1].long() * 0)


class Person(nn.Module):
    """A trunk, and two heads: how old somebody is, and of which of three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
        self.age, self.sex = nn.Linear(32, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.age(h)[:, 0], self.sex(h)


def people(generator: Generator, train: bool) -> Batch:
    x = torch.randn(48 if train else 192, 20, generator=generator)
    return x, x[:, 0] * x[:, 1] + x[:, 2], (x[:, 3:6] + x[:, 6:9] * x[:, :1]).argmax(1)


def both_heads(unit: float = 1.0, total: float = 1.0) -> Loss:
    """The sum of two losses, with ages in a unit, times a factor."""

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        age, sex = net(batch[0])
        return total * (((age - batch[1] * unit) ** 2).mean() + F.cross_entropy(sex, batch[2]))

    return loss


@counts_errors
def wrong_sex(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[1].argmax(1) != batch[2]).float().mean()


def before_the_head(net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that does not know the layers that were replaced after it was made."""
    known = [p for name, p in net.named_parameters() if not name.startswith(("sex", "trunk.2"))]
    return torch.optim.Adam(known, 4e-3)


KINDS = [
    Kind(
        "medical table",
        Recipe(lambda: mlp(30, 32, 16, 1), biopsies(), benign, sgd(0.05, 0.9), benign_at_most_three, 160, per_epoch=40),
        (
            Fault(
                "StandardScaler left out",
                "inputs differ in scale",
                "StackOverflow; DeepFD, Cao et al. 2022: data not normalised",
                m.setting(data=biopsies(scaled=False)),
            ),
            Fault(
                "biases of minus ten before the ReLUs",
                "units are dead",
                "DeepLocalize, Wardat et al. 2021; UMLAUT, Schoop et al. 2021: dying ReLU",
                m.weights(lambda name, p: p.fill_(-10.0) if name in ("0.bias", "2.bias") else p),
            ),
            Fault(
                "all weights begin at zero",
                "weights begin at zero",
                "DeepCrime, Humbatova et al. 2021: WCI: zeros",
                m.weights(lambda name, p: p.zero_()),
            ),
            Fault(
                "cross entropy over one output",
                "output activation and loss do not fit",
                "Humbatova et al. 2020: softmax over one neuron",
                m.setting(loss=softmax_over_one),
                "subtle",
            ),
        ),
    ),
    Kind(
        "two heads",
        Recipe(Person, people, both_heads(), adam(4e-3), wrong_sex, steps=250),
        (
            Fault(
                "age in days: one loss rules the trunk",
                "targets too large",
                "https://github.com/keras-team/keras/issues/10306",
                m.setting(loss=both_heads(unit=6000.0)),
            ),
            Fault(
                "optimizer made before the second head was replaced",
                "parameters in no optimizer",
                "https://github.com/huggingface/pytorch-openai-transformer-lm/pull/6",
                m.setting(optimizer=before_the_head),
            ),
            Fault(
                "loss divided by the size of the data set, twice (1e10), Adam",
                "loss is badly scaled",
                "https://github.com/twtygqyy/pytorch-SRResNet/issues/15",
                m.setting(loss=both_heads(total=1e-10)),
            ),
        ),
    ),
]
