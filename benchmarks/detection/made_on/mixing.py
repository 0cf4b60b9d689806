"""Parts that are mixed: behind gates, by their spectrum, in a sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from ..tasks.synthetic import squared, table


class Gated(nn.Module):
    """Residual blocks behind gates that begin at zero."""

    def __init__(self, gate: Any = None) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(8, 32), nn.Linear(32, 1)
        self.blocks = nn.ModuleList(mlp(32, 32, 32) for _ in range(8))
        self.gates = nn.Parameter(torch.zeros(8))
        self.gate = gate or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block, gate in zip(self.blocks, self.gate(self.gates), strict=True):
            x = x + gate * block(x)
        return self.out(x)


def rows(generator: Generator, train: bool) -> Batch:
    return digits(32, 8, 8)(generator, train)


class Mixing(nn.Module):
    """Mixes rows by their spectrum, where others attend."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.mix = nn.ModuleList(mlp(32, 64, 32) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.place = nn.Parameter(0.02 * torch.randn(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.place
        for index, mix in enumerate(self.mix):
            x = self.norms[2 * index](x + torch.fft.fft2(x).real / 16)
            x = self.norms[2 * index + 1](x + mix(x))
        return self.head(x.mean(1))


class Additive(nn.Module):
    """One small net for each feature, and their sum."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp(1, 16, 1) for _ in range(features))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + sum(part(x[:, i : i + 1]) for i, part in enumerate(self.parts))


def by_hand(net: nn.Module, batch: Batch) -> Tensor:
    return ((batch[1] - net(batch[0])) ** 2).mean()


def one_column_in_full(x: Tensor) -> Tensor:
    return torch.cat([40_000 + 15_000 * x[:, :1], x[:, 1:]], 1)


KINDS = [
    Kind(
        "gates that begin at zero",
        Recipe(Gated, table(48), squared, adam(3e-3), steps=400),
        (
            Fault(
                "the gates go through a ReLU",
                "weights begin at zero",
                "https://github.com/lucidrains/deep-cross-attention/issues/2",
                m.setting(model=lambda: Gated(nn.ReLU())),
            ),
        ),
    ),
    Kind(
        "mixed by spectrum",
        Recipe(Mixing, rows, cross_entropy, adamw(3e-3), error_rate, steps=300),
        (
            Fault(
                "a loss that is multiplied by 1e-9",
                "rate too low",
                "Humbatova et al. 2020, taxonomy: loss function",
                m.both(
                    m.setting(loss=lambda net, batch: 1e-9 * cross_entropy(net, batch)),
                    m.setting(optimizer=sgd(0.1)),
                ),
            ),
        ),
    ),
    Kind(
        "a sum of small nets",
        Recipe(Additive, table(), by_hand, adam(1e-2), by_hand, steps=250),
        (
            Fault(
                "the small nets are kept in a plain list",
                "parameters in no optimizer",
                "https://github.com/pytorch/pytorch/issues/715",
                m.unregistered("parts", list),
            ),
            Fault(
                "a column of incomes in full",
                "inputs differ in scale",
                "https://github.com/sktime/pytorch-forecasting/issues/1",
                m.both(m.inputs(one_column_in_full), m.setting(optimizer=sgd(1e-3))),
            ),
            Fault(
                "prices in full, the error by hand",
                "targets too large",
                "https://github.com/sktime/pytorch-forecasting/issues/649",
                m.both(
                    m.batches(lambda b: (b[0], 3e5 + 1e5 * b[1])),
                    m.setting(metric=lambda net, b: by_hand(net, b) / 1e10),
                ),
            ),
        ),
    ),
]
