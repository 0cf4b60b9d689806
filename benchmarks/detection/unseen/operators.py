"""Functions and operators: a spectrum, a net that only rises."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam


class Spectral(nn.Module):
    """Multiplies the lowest frequencies by complex weights, and adds what a pointwise layer says."""

    def __init__(self, width: int = 12, modes: int = 6) -> None:
        super().__init__()
        self.modes, self.enter, self.leave = modes, nn.Linear(1, width), nn.Linear(width, 1)
        self.weight = nn.ParameterList(
            nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width) for _ in range(2)
        )
        self.pointwise = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for weight, pointwise in zip(self.weight, self.pointwise, strict=True):
            spectrum = torch.fft.rfft(x, dim=1)[:, : self.modes]
            mixed = torch.einsum("bmi,iom->bmo", spectrum, weight)
            x = F.gelu(torch.fft.irfft(mixed, n=x.shape[1], dim=1) + pointwise(x))
        return self.leave(x)


def heat(generator: Generator, train: bool) -> Batch:
    """A curve, and what is left of it after a while."""
    x = torch.randn(24 if train else 96, 32, 1, generator=generator).cumsum(1)
    x = (x - x.mean(1, keepdim=True)) / 4
    frequencies = torch.fft.rfft(x, dim=1)
    fading = torch.exp(-0.1 * torch.arange(frequencies.shape[1])[:, None] ** 1.5)
    return x, torch.fft.irfft(frequencies * fading, n=32, dim=1)


def relative(net: nn.Module, batch: Batch) -> Tensor:
    """Relative error by hand, as is usual for operators."""
    x, y = batch
    return ((net(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).mean()


def by_hand(net: nn.Module, batch: Batch) -> Tensor:
    return ((batch[1] - net(batch[0])) ** 2).mean()


class Rising(nn.Module):
    """Weights that are never negative, and so a function that only rises."""

    def __init__(self, start: float = -2.0) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(start + 0.5 * torch.randn(8, 24)), nn.Parameter(start + torch.randn(24, 1))
        self.shift, self.bias = nn.Parameter(torch.randn(24)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ F.softplus(self.one) + self.shift) @ F.softplus(self.other) + self.bias


def rising(generator: Generator, train: bool) -> Batch:
    x = torch.randn(48 if train else 256, 8, generator=generator)
    return x, torch.tanh(x[:, :1] + x[:, 1:2]) + 0.5 * x[:, 2:3].exp().clamp(max=3)


KINDS = [
    Kind(
        "heat by its spectrum",
        Recipe(Spectral, heat, relative, adam(4e-3), relative, steps=200),
        (
            Fault(
                "a rate of 1",
                "rate too high",
                "https://github.com/uma-pi1/kge/issues/240",
                m.rate(250.0),
            ),
        ),
    ),
    Kind(
        "only ever rising",
        Recipe(Rising, rising, by_hand, adam(1e-2), by_hand, steps=300),
        (
            Fault(
                "softplus of weights that begin at seven",
                "weights begin too large",
                "Cao et al. 2022",
                m.setting(model=lambda: Rising(7.0)),
            ),
        ),
    ),
]
