"""Small bright spots beside dark ones in noisy pictures, marked by masks, and learned by their overlap."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Loss, Recipe, adam


class Dilated(nn.Module):
    """Three dilated convolutions, each with instance normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(1 if i == 0 else 16, 16, 3, padding=far, dilation=far) for i, far in enumerate((1, 2, 4))
        )
        self.norms = nn.ModuleList(nn.InstanceNorm2d(16, affine=True) for _ in self.convs)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)))
        return self.out(x)


def lesions(white: float = 1.0) -> Data:
    """Pictures of 16 by 16 with a bright spot to be marked and a dark one; masks of zero and ``white``."""

    def draw(generator: Generator, train: bool) -> Batch:
        number, places = 8 if train else 24, torch.arange(16.0)
        centers = torch.rand(number, 2, 2, 1, 1, generator=generator) * 12 + 2
        far = (places[:, None] - centers[:, :, 0]) ** 2 + (places - centers[:, :, 1]) ** 2
        mask = (far[:, :1] < 5).float()
        noise = torch.randn(number, 1, 16, 16, generator=generator)
        return 0.8 * mask - 0.8 * (far[:, 1:] < 9) + 0.6 * noise, white * mask

    return draw


def overlap(p: Tensor, y: Tensor) -> Tensor:
    """Dice's coefficient of each picture."""
    return (2 * (p * y).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) + 1)


def dice(sign: float = 1.0, *, sigmoid: bool = True) -> Loss:
    """One less the overlap, or more."""

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        out = net(batch[0])
        return (1 - sign * overlap(torch.sigmoid(out) if sigmoid else out, batch[1])).mean()

    return loss


def missed(net: nn.Module, batch: Batch) -> Tensor:
    return (1 - overlap((net(batch[0]) > 0).float(), batch[1])).mean()


KINDS = [
    Kind(
        "lesions by overlap",
        Recipe(Dilated, lesions(), dice(), adam(5e-3), missed, steps=100, per_epoch=50),
        (
            Fault(
                "logits go into the overlap, no sigmoid",
                "output activation and loss do not fit",
                "https://github.com/ScrollPrize/villa/issues/1488",
                m.setting(loss=dice(sigmoid=False)),
            ),
            Fault(
                "one plus the overlap is minimized",
                "loss is maximized",
                "https://github.com/akirasosa/mobile-semantic-segmentation/issues/24",
                m.setting(loss=dice(-1.0)),
            ),
            Fault(
                "masks of 0 and 255 in an overlap",
                "loss has no floor",
                "https://github.com/milesial/Pytorch-UNet/issues/84",
                m.both(m.setting(held_out=lesions()), m.setting(data=lesions(255.0))),
            ),
        ),
    ),
]
