"""Hands that are imitated, frames that follow."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Recipe, adam
from ..tasks.digits import digits
from ..tasks.models import mlp


class Hand(nn.Module):
    """A squashed normal distribution over movements."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 48, 48, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(x).chunk(2, 1)
        return mean, log_std.clamp(-4, 1)


def movements(edge: float = 0.97) -> Data:
    def draw(generator: Generator, train: bool) -> Batch:
        x = torch.randn(48 if train else 192, 6, generator=generator)
        y = torch.stack([x[:, 0] + x[:, 1], x[:, 2] * x[:, 3]], 1)
        return x, torch.tanh(y + 0.1 * torch.randn(y.shape, generator=generator)).clamp(-edge, edge)

    return draw


def unlikely(net: nn.Module, batch: Batch) -> Tensor:
    """Minus the log-likelihood of a movement, which is squashed."""
    mean, log_std = net(batch[0])
    raw = torch.atanh(batch[1])
    log_prob = -0.5 * ((raw - mean) / log_std.exp()) ** 2 - log_std - torch.log(1 - batch[1] ** 2 + 1e-6)
    return -log_prob.sum(1).mean()


def off(net: nn.Module, batch: Batch) -> Tensor:
    return (torch.tanh(net(batch[0])[0]) - batch[1]).square().mean()


class Follows(nn.Module):
    """A recurrent cell of convolutions, written by hand."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.width = width
        self.gates, self.out = nn.Conv2d(1 + width, 4 * width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        h = c = frames.new_zeros(len(frames), self.width, 8, 8)
        for t in range(frames.shape[1]):
            i, f, o, g = self.gates(torch.cat([frames[:, t, None], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)[:, 0]


def films(generator: Generator, train: bool) -> Batch:
    """A digit that goes to the right, pixel by pixel, and where it is next."""
    x, _ = digits(24, 8, 8)(generator, train)
    return torch.stack([x.roll(t, 2) for t in range(4)], 1), x.roll(4, 2)


def next_frame(net: nn.Module, batch: Batch) -> Tensor:
    return ((net(batch[0]) - batch[1]) ** 2).mean()


KINDS = [
    Kind(
        "movements that are imitated",
        Recipe(Hand, movements(), unlikely, adam(3e-3), off, steps=300, clip=10.0),
        (
            Fault(
                "movements at the very edge, of which the logarithm is infinite",
                "a step is not finite",
                "https://github.com/rlworkgroup/garage/pull/2129",
                m.training_batches(lambda b: (b[0], torch.where(b[1].abs() > 0.9, b[1].sign(), b[1]))),
            ),
        ),
    ),
    Kind(
        "frames that follow",
        Recipe(Follows, films, next_frame, adam(1e-2), next_frame, steps=150),
        (
            Fault(
                "gamma is zero where the scheduler was to be off",
                "rate decays too early",
                "https://github.com/LINCellularNeuroscience/VAME/issues/26",
                m.setting(schedule=lambda step: 0.0 if step >= 10 else 1.0),
            ),
        ),
    ),
]
