"""Time series and tables as people have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.models import mlp
from .equations import squared


def relative(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).square().mean() / batch[1].var()


class Stacked(nn.Module):
    """Each block explains a part of the series and hands on what is left; raw values, and no normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(24, 48, 24 + 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        said = x.new_zeros(len(x), 6)
        for block in self.blocks:
            back, ahead = block(x).split([24, 6], 1)
            x, said = x - back, said + ahead
        return said


def sales(scale: float = 8.0) -> Any:
    """A level, a season and noise, in units as sold."""

    def draw(generator: Generator, train: bool) -> Batch:
        phase = 6.28 * torch.rand(32, 1, generator=generator)
        level = 1 + torch.rand(32, 1, generator=generator)
        series = scale * (level + torch.sin(torch.arange(30) * 0.52 + phase))
        series = series + 0.1 * scale * torch.randn(series.shape, generator=generator)
        return series[:, :24], series[:, 24:]

    return draw


def forecast_error(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).abs().mean() / batch[1].abs().mean()


def absolute(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).abs().mean()


class Gated(nn.Module):
    """Chooses among its variables by a softmax; of the static ones there is but one."""

    def __init__(self) -> None:
        super().__init__()
        self.static, self.dynamic = nn.Linear(8, 1), nn.Linear(8, 4)
        self.up, self.gate, self.out = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        own = F.softmax(self.static(x), 1)
        chosen = x[:, :4] * F.softmax(self.dynamic(x), 1) * own
        h = F.elu(self.up(torch.cat([chosen, x[:, 4:]], 1)))
        return self.out(F.glu(self.gate(h), 1))


def mixed(generator: Generator, train: bool) -> Batch:
    x = torch.randn(48, 8, generator=generator)
    return x, torch.where(x[:, 4:5] > 0, x[:, :1], x[:, 1:2]) + 0.5 * x[:, 5:6]


SERIES = Recipe(Stacked, sales(), absolute, adam(1e-3), forecast_error, steps=500)


GATED = Recipe(Gated, mixed, squared, adam(1e-2), relative, steps=500)


KINDS = [
    Kind(
        "series by stacked residuals",
        SERIES,
        (
            Fault(
                "SGD on raw values",
                "rate too high",
                "https://github.com/sktime/pytorch-forecasting/issues/649",
                m.setting(optimizer=sgd(0.1), loss=squared),
            ),
            Fault(
                "sigmoid output for values up to 30",
                "output is saturated",
                "https://github.com/microsoft/CNTK/issues/903",
                m.setting(model=lambda: nn.Sequential(Stacked(), nn.Sigmoid())),
            ),
        ),
    ),
    Kind(
        "variables chosen by a softmax",
        GATED,
        (
            Fault(
                "zero_grad between backward and step",
                "step is never called",
                "https://github.com/Tony-Y/pytorch_warmup/issues/12",
                m.setting(manual=m.cleared_before_step),
            ),
        ),
    ),
]
