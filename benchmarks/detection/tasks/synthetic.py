"""Small made-up data: tables, curves, points in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ..recipe import Batch, Data


def table(batch_size: int = 32, features: int = 8, noise: float = 0.1) -> Data:
    """A smooth function of the features, and some noise."""

    def draw(generator: Generator, train: bool) -> Batch:
        x = torch.randn(batch_size if train else 256, features, generator=generator)
        y = x[:, :1] * x[:, 1:2] + torch.sin(2 * x[:, 2:3]) + 0.5 * x[:, 3:4]
        return x, y + noise * torch.randn(y.shape, generator=generator)

    return draw


def labelled_table(batch_size: int = 32, features: int = 8) -> Data:
    """Two classes, told apart by the sign of a smooth function; labels 0.0 and 1.0."""
    values = table(batch_size, features, noise=0.0)

    def draw(generator: Generator, train: bool) -> Batch:
        x, y = values(generator, train)
        return x, (y > 0).float()

    return draw


def ring(batch_size: int = 64, modes: int = 6) -> Data:
    """Points around ``modes`` places on a circle of radius two."""

    def draw(generator: Generator, train: bool) -> Batch:
        size = batch_size if train else 256
        angle = 2 * math.pi / modes * torch.randint(modes, (size,), generator=generator)
        centre = 2 * torch.stack([angle.cos(), angle.sin()], 1)
        return centre + 0.15 * torch.randn(size, 2, generator=generator)

    return draw


def moved(data: Data, change: Callable[[Batch], Batch]) -> Data:
    """The same data after a change of each batch, held-out ones too."""
    return lambda generator, train: change(data(generator, train))


def squared(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return (net(x) - y).square().mean()


def distance(made: Tensor, real: Tensor) -> Tensor:
    """Sliced Wasserstein distance of two equally large clouds of points."""
    angle = torch.linspace(0, math.pi, 17)[:-1]
    along = torch.stack([angle.cos(), angle.sin()]) if made.shape[1] == 2 else _directions(made.shape[1])
    return ((made @ along).sort(0).values - (real @ along).sort(0).values).abs().mean()


def _directions(size: int) -> Tensor:
    directions = torch.randn(size, 24, generator=torch.Generator().manual_seed(5))
    return directions / directions.norm(dim=0)
