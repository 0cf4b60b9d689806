"""Where things are: discs in noise, colors at coordinates."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.models import mlp
from ..tasks.synthetic import squared


class UNet(nn.Module):
    """Once down and up again, with what was there before.

    Args:
        squashed: whether a sigmoid stands at the end.
    """

    def __init__(self, squashed: bool = False) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 8, 3, padding=1)
        self.low, self.lower = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.high, self.out = nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.squashed = squashed

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.enter(x))
        coarse = F.relu(self.lower(F.relu(self.low(F.max_pool2d(fine, 2)))))
        together = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        out = self.out(F.relu(self.high(together)))
        return torch.sigmoid(out) if self.squashed else out


def discs(generator: Generator, train: bool) -> Batch:
    """A disc in noise, and the mask of it."""
    num = 16 if train else 48
    centre = torch.rand(num, 2, 1, 1, generator=generator) * 10 + 3
    radius = torch.rand(num, 1, 1, generator=generator) * 2.5 + 2
    axis = torch.arange(16.0)
    apart = (axis[None, :, None] - centre[:, 0]) ** 2 + (axis[None, None] - centre[:, 1]) ** 2
    mask = (apart < radius**2).float()[:, None]
    return mask * 1.2 - 0.3 + 0.7 * torch.randn(num, 1, 16, 16, generator=generator), mask


def masked(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


def not_covered(net: nn.Module, batch: Batch) -> Tensor:
    """One minus intersection over union."""
    found, there = torch.sigmoid(net(batch[0])) > 0.5, batch[1] > 0.5
    return 1 - (found & there).sum() / ((found | there).sum() + 1)


class Waves(nn.Module):
    """The color of a place, from sines and cosines of it."""

    waves: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", 2 * torch.randn(2, 24, generator=torch.Generator().manual_seed(1)))
        self.net = mlp(48, 64, 64, 3, last=nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.waves
        return self.net(torch.cat([phase.sin(), phase.cos()], 1))


def pixels(generator: Generator, train: bool) -> Batch:
    place = torch.rand(128, 2, generator=generator) * 2 - 1
    x, y = place.unbind(1)
    colors = [0.5 + 0.5 * torch.sin(5 * x), 0.5 + 0.5 * torch.cos(4 * y * x), ((place**2).sum(1) < 0.5).float()]
    return place, torch.stack(colors, 1)


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step, 300) / 300))


KINDS = [
    Kind(
        "u-net with masks",
        Recipe(UNet, discs, masked, adam(3e-3), not_covered, steps=150, per_epoch=50),
        (
            Fault(
                "a sigmoid in the model, and BCEWithLogits",
                "output activation and loss do not fit",
                "UMLAUT (Schoop et al. 2021); Islam et al. 2019: wrong last activation",
                m.setting(model=lambda: UNet(squashed=True)),
            ),
            Fault(
                "masks of 0 and 255",
                "targets too large",
                "https://github.com/milesial/Pytorch-UNet/issues/78",
                m.training_batches(lambda b: (b[0], b[1] * 255)),
            ),
            Fault(
                "Adam, three hundred times the rate",
                "rate too high",
                "AUTOTRAINER (Zhang et al. 2021)",
                m.rate(300.0),
            ),
        ),
    ),
    Kind("coordinates to colors", Recipe(Waves, pixels, squared, adam(5e-3), steps=250, schedule=cosine)),
]
