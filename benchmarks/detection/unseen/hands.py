"""Hands that are imitated, pictures that are squeezed, frames that follow: with an optimizer of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Loss, Recipe, adam
from ..tasks.digits import digits, error_rate
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


class Squeezed(nn.Module):
    """A code that is made of whole numbers in the end, and of noise while it is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, 64, 12), mlp(12, 64, 64)
        self.log_scale = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = 3 * self.encode(x)
        code = code + torch.rand_like(code) - 0.5 if self.training else code.round()
        scale = self.log_scale.exp()
        inside = torch.sigmoid((code + 0.5) / scale) - torch.sigmoid((code - 0.5) / scale)
        return self.decode(code / 3), -torch.log2(inside.clamp(min=1e-7)).sum(1).mean()


def squeezed(weight: float = 0.002) -> Loss:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        made, bits = net(batch[0])
        return (made - batch[0]).square().mean() + weight * bits

    return loss


def distortion(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[0] - batch[0]).square().mean()


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


class Signs(torch.optim.Optimizer):
    """A step of the same size for every weight, with some momentum: an optimizer of one's own."""

    def __init__(self, params: Any, lr: float = 1e-3, power: int = 1) -> None:
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(kept.lerp_(p.grad, 0.1).sign(), alpha=group["lr"] ** group["power"])
        return loss


def entropy(net: nn.Module, batch: Batch) -> Tensor:
    return -net(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()


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
        "codes in whole numbers",
        Recipe(Squeezed, digits(48), squeezed(), adam(2e-3), distortion, steps=250),
        (
            Fault(
                "bits are weighted by one",
                "posterior has collapsed",
                "https://github.com/AppliedDataSciencePartners/WorldModels/issues/12",
                m.setting(loss=squeezed(1.0)),
                "subtle",
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
    Kind(
        "steps of one size",
        Recipe(lambda: mlp(64, 48, 10), digits(32), entropy, lambda n: Signs(n.parameters(), 1e-3), error_rate, 250),
        (
            Fault(
                "the step is multiplied by the rate twice",
                "rate too low",
                "https://github.com/wuxiyu/transE/issues/15",
                m.setting(optimizer=lambda net: Signs(net.parameters(), 1e-3, power=2)),
            ),
        ),
    ),
]
