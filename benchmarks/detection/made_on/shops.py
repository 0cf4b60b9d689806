"""Columns beside embeddings, functions from a few points, spikes, a model of a world."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Loss, Recipe, adam
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from .by_hand import sines


class Shop(nn.Module):
    """Vectors for the month, the day and the shop, joined to what is known as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(12, 4), nn.Embedding(7, 3), nn.Embedding(30, 6)])
        self.hidden, self.out = nn.Linear(16, 48), nn.Linear(48, 1)

    def forward(self, which: Tensor, x: Tensor) -> Tensor:
        joined = torch.cat([*(table(which[:, i]) for i, table in enumerate(self.tables)), x], 1)
        return self.out(F.dropout(F.relu(self.hidden(joined)), 0.05, self.training))


def sales(*, in_full: bool = False, stamps: bool = False) -> Data:
    def draw(generator: Generator, train: bool) -> Batch:
        num = 64 if train else 256
        which = torch.stack([torch.randint(k, (num,), generator=generator) for k in (12, 7, 30)], 1)
        x = torch.randn(num, 3, generator=generator)
        season = which[:, 0] / 6 - 1 + 0.5 * (which[:, 1] > 4) + torch.sin(which[:, 2].float())
        y = (season + 0.4 * x[:, 0] * x[:, 1])[:, None]
        x[:, 2] = 1.6e9 + 1e6 * x[:, 2] if stamps else x[:, 2]
        return which, x, 5000 + 2500 * y if in_full else y

    return draw


def missed(net: nn.Module, batch: Batch) -> Tensor:
    return ((net(batch[0], batch[1]) - batch[2]) ** 2).mean()


class FromAFew(nn.Module):
    """A function, and how sure it is of it, from eight points."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.say = mlp(2, 32, 32), mlp(33, 32, 2)

    def forward(self, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.read(torch.cat([x, y], -1)).mean(1, keepdim=True).expand(-1, at.shape[1], -1)
        mean, spread = self.say(torch.cat([seen, at], -1)).chunk(2, -1)
        return mean, 0.1 + 0.9 * F.softplus(spread)


def unlikely(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    mean, spread = net(x[:, :8], y[:, :8], x[:, 8:])
    return (((y[:, 8:] - mean) / spread) ** 2 / 2 + spread.log()).mean()


def off(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return (net(x[:, :8], y[:, :8], x[:, 8:])[0] - y[:, 8:]).square().mean()


class Fires(torch.autograd.Function):
    """A step, with the slope of something smoother."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope / (1 + 10 * x.abs()) ** 2


class Spikes(nn.Module):
    """Neurons that leak, and fire at a threshold."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.one, self.other, self.threshold = nn.Linear(64, 64), nn.Linear(64, 10), threshold

    def forward(self, x: Tensor) -> Tensor:
        charge, out = x.new_zeros(len(x), 64), x.new_zeros(len(x), 10)
        for _ in range(8):
            charge = 0.9 * charge + self.one(x)
            fired = Fires.apply(charge - self.threshold)
            charge, out = charge - self.threshold * fired, 0.9 * out + self.other(fired)
        return out


class World(nn.Module):
    """What is seen next, by a state that is partly drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.remember = mlp(6, 32, 16), nn.GRUCell(4, 24)
        self.after, self.before, self.show = nn.Linear(40, 8), nn.Linear(24, 8), mlp(28, 32, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, shown, divergence = x.new_zeros(len(x), 24), [], torch.zeros(())
        for t in range(x.shape[1]):
            p, p_log = self.before(h).chunk(2, 1)
            q, q_log = self.after(torch.cat([h, self.see(x[:, t])], 1)).chunk(2, 1)
            z = q + q_log.exp() * torch.randn_like(q) if self.training else q
            shown.append(self.show(torch.cat([h, z], 1)))
            apart = p_log - q_log + ((2 * q_log).exp() + (q - p) ** 2) / (2 * (2 * p_log).exp()) - 0.5
            divergence = divergence + apart.sum(1).mean() / x.shape[1]
            h = self.remember(z, h)
        return torch.stack(shown, 1), divergence


def moves(generator: Generator, train: bool) -> Batch:
    start, speed = (torch.randn(16 if train else 64, 1, 6, generator=generator) for _ in range(2))
    return start + 0.3 * speed * torch.arange(6.0)[None, :, None]


def imagined(weight: float = 0.02) -> Loss:
    def loss(net: nn.Module, x: Batch) -> Tensor:
        shown, divergence = net(x)
        return (shown - x).square().mean() + weight * divergence

    return loss


KINDS = [
    Kind(
        "sales of shops",
        Recipe(Shop, sales(), missed, adam(1e-2), missed, steps=250),
        (
            Fault(
                "sales in full, the error by hand",
                "targets too large",
                "https://github.com/sktime/pytorch-forecasting/issues/649",
                m.setting(data=sales(in_full=True), metric=lambda net, b: missed(net, b) / 2500**2),
            ),
            Fault(
                "a column of time stamps",
                "input too large",
                "https://github.com/unit8co/darts/issues/779",
                m.setting(data=sales(stamps=True)),
            ),
        ),
    ),
    Kind(
        "functions from a few points",
        Recipe(FromAFew, sines, unlikely, adam(5e-3), off, steps=300),
        (
            Fault(
                "values in thousandths of a unit, as input and target",
                "input too large",
                "https://github.com/unit8co/darts/issues/779",
                m.both(
                    m.batches(lambda b: (b[0], 3000 * b[1])),
                    m.setting(metric=lambda net, b: off(net, b) / 9e6),
                ),
            ),
        ),
    ),
    Kind(
        "spikes",
        Recipe(Spikes, digits(32), cross_entropy, adam(3e-3), error_rate, steps=150),
        (
            Fault(
                "a threshold of 300",
                "gradient vanishes over depth",
                "Neftci et al. 2019",
                m.setting(model=lambda: Spikes(300.0)),
            ),
        ),
    ),
    Kind(
        "a model of a world",
        Recipe(World, moves, imagined(), adam(5e-3), lambda net, x: (net(x)[0] - x).square().mean(), steps=100),
        (
            Fault(
                "the error is averaged, the divergence summed",
                "posterior has collapsed",
                "https://github.com/AppliedDataSciencePartners/WorldModels/issues/12",
                m.setting(loss=imagined(20.0)),
                "subtle",
            ),
        ),
    ),
]
