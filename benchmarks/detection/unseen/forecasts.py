"""What comes next: a load, a sum of tones, and a curve whose net is made by another net."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Recipe, adam, adamw
from ..tasks.synthetic import squared


class Forecaster(nn.Module):
    """A transformer over the last day that says the next six hours."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.enter = nn.Linear(1, width)
        self.place = nn.Parameter(torch.randn(24, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 2, 48, 0.0, batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(24 * width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encode(self.enter(x[..., None]) + self.place).flatten(1))


def load(scale: float = 1.0, level: float = 0.0) -> Data:
    """A wave with some noise, around a level: 24 hours, and the six that follow."""

    def draw(generator: Generator, train: bool) -> Batch:
        num = 24 if train else 96
        height = torch.rand(num, 1, generator=generator) + 0.5
        start = torch.rand(num, 1, generator=generator) * 6.28
        speed = torch.rand(num, 1, generator=generator) * 0.5 + 0.4
        wave = height * torch.sin(speed * torch.arange(30.0) + start)
        x = (wave + 0.05 * torch.randn(num, 30, generator=generator)) * scale + level
        return x[:, :24], x[:, 24:]

    return draw


def unexplained(net: nn.Module, batch: Batch) -> Tensor:
    """Share of the variance that is left."""
    return squared(net, batch) / batch[1].var()


class Causal(nn.Module):
    """Dilated convolutions that see the past alone, with a gate, and a sum of what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(nn.Conv1d(1 if i == 0 else 16, 32, 2, dilation=2**i) for i in range(4))
        self.mix = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.out = nn.Conv1d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor | float = 0.0
        for i, (dilated, mix) in enumerate(zip(self.dilated, self.mix, strict=True)):
            values, gate = dilated(F.pad(x, (2**i, 0))).chunk(2, 1)
            h = mix(torch.tanh(values) * torch.sigmoid(gate))
            told = told + h
            x = h if i == 0 else x + h
        return self.out(F.relu(told))


def tones(generator: Generator, train: bool) -> Batch:
    """A sum of two tones, and the same one moment later."""
    num = 16 if train else 64
    speed = torch.rand(num, 2, 1, generator=generator) * 0.8 + 0.2
    start = torch.rand(num, 2, 1, generator=generator) * 6
    x = torch.sin(speed * torch.arange(33.0) + start).sum(1, keepdim=True)
    return x[..., :-1], x[..., 1:]


class Made(nn.Module):
    """The last layer of one net is what another net says, given a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, 3 * 16 + 1))
        self.enter = nn.Linear(1, 16)

    def forward(self, x: Tensor) -> Tensor:
        made = self.make(x[:, :2])
        f = torch.sin(self.enter(x[:, 2:]) * 2)
        weighted = f * made[:, :16] + torch.tanh(f) * made[:, 16:32] + f**2 * made[:, 32:48]
        return weighted.sum(1, keepdim=True) / 4 + made[:, 48:]


def curves(generator: Generator, train: bool) -> Batch:
    """A phase, a height and a place, and the wave there."""
    x = torch.rand(64 if train else 256, 3, generator=generator) * 4 - 2
    return x, torch.sin(x[:, 2:] * 2 + x[:, :1]) * x[:, 1:2]


KINDS = [
    Kind(
        "forecasting transformer",
        Recipe(Forecaster, load(), squared, adam(2e-3), unexplained, steps=150, per_epoch=50),
        (
            Fault(
                "the load in watts, not scaled",
                "targets too large",
                "UMLAUT, Schoop et al. 2021; forum: 'transformer predicts the mean'",
                m.setting(data=load(800.0, 5000.0)),
            ),
            Fault(
                "ExponentialLR(0.8) stepped each batch",
                "rate decays too early",
                "https://github.com/pytorch/tutorials/pull/640",
                m.setting(schedule=lambda step: 0.8**step),
            ),
            Fault(
                "Adam, a thousandth of the rate",
                "rate too low",
                "DeepCrime, Humbatova et al. 2021: HLR",
                m.rate(1e-3),
            ),
        ),
    ),
    Kind("dilated and causal", Recipe(Causal, tones, squared, adamw(4e-3), squared, steps=200)),
    Kind("weights that are made", Recipe(Made, curves, squared, adam(4e-3, amsgrad=True), steps=300)),
]
