"""Healthy runs on little: small batches that are added up, one example, one batch, an illness that few have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..kind import Kind
from ..recipe import Batch, Recipe, adamw, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from ..tasks.synthetic import squared


class Mixer(nn.Module):
    """Layers across patches and layers across channels, in turn, each around a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 32, 2, 2)
        self.patches = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.channels = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.patches[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x))
        return self.out(x.mean(1))


def mixed_up(generator: Generator, train: bool) -> Batch:
    """Digits that shine through each other, with both labels in their shares; held-out ones are as they are."""
    x, y = digits(8, 1, 8, 8)(generator, train)
    share = torch.rand(len(x), 1, generator=generator)
    other = torch.randperm(len(x), generator=generator)
    if not train:
        return x, y
    labels, pixels = F.one_hot(y, 10).float(), share[..., None, None]
    return pixels * x + (1 - pixels) * x[other], share * labels + (1 - share) * labels[other]


def one_example(generator: Generator, train: bool) -> Batch:
    x = torch.randn(1 if train else 256, 8, generator=generator)
    return x, torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3] * 0.5


def rare(generator: Generator, train: bool) -> Batch:
    """One of ten is ill."""
    y = (torch.rand(96 if train else 400, generator=generator) < 0.1).float()
    return torch.randn(len(y), 12, generator=generator) + y[:, None] * torch.linspace(0, 1.6, 12), y


def focal(net: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy that counts less what is already right, and more who is ill."""
    score, ill = net(batch[0])[:, 0], batch[1] > 0
    p = torch.sigmoid(score)
    right = torch.where(ill, p, 1 - p)
    each = F.binary_cross_entropy_with_logits(score, batch[1], reduction="none")
    return ((1 - right) ** 2 * each * torch.where(ill, 0.75, 0.25)).mean()


def disordered(net: nn.Module, batch: Batch) -> Tensor:
    """Share of pairs in which the healthy one scores as high as the ill one, or higher."""
    score = net(batch[0])[:, 0]
    return (score[batch[1] > 0][:, None] <= score[batch[1] == 0][None]).float().mean()


def hyperbolic() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class Lion(torch.optim.Optimizer):
    """The sign of a mean of gradients, and weight decay (Chen et al. 2023)."""

    def __init__(self, params: Any, lr: float = 3e-4, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.sub_((0.9 * mean + 0.1 * p.grad).sign(), alpha=group["lr"])
                    mean.lerp_(p.grad, 0.01)
        return loss


def lion(net: nn.Module) -> torch.optim.Optimizer:
    return Lion(net.parameters(), 6e-4)


KINDS = [
    Kind(
        "small batches added up",
        Recipe(
            Mixer,
            mixed_up,
            cross_entropy,
            adamw(4e-3, weight_decay=0.05),
            error_rate,
            steps=150,
            per_epoch=200,
            accumulate=4,
        ),
    ),
    Kind(
        "one example at a time",
        Recipe(hyperbolic, one_example, squared, sgd(0.02, 0.0), squared, steps=400, per_epoch=400),
    ),
    Kind(
        "lion on pictures",
        Recipe(convolutions, digits(32, 1, 8, 8), cross_entropy, lion, error_rate, steps=150, per_epoch=50),
    ),
    Kind(
        "one batch again and again",
        Recipe(
            lambda: mlp(64, 64, 64, 10), digits(16), cross_entropy, sgd(0.05, 0.9), error_rate, steps=200, per_epoch=4
        ),
    ),
    Kind(
        "rare things, focal loss",
        Recipe(
            lambda: nn.Sequential(nn.Linear(12, 24), nn.Mish(), nn.Linear(24, 1)),
            rare,
            focal,
            adamw(2e-3),
            disordered,
            steps=250,
        ),
    ),
]
