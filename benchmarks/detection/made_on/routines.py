"""Routines that look odd from outside and are healthy: margins, teachers, mixtures, half precision."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from ..tasks.synthetic import squared, table


class Angular(nn.Module):
    """Classes as directions; the right one must win by an angle. Its first loss is far above that of a guess."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.directions = mlp(64, 64, 24), nn.Parameter(torch.randn(10, 24))

    def forward(self, x: Tensor) -> Tensor:
        return 30 * F.normalize(self.body(x)) @ F.normalize(self.directions).T


def by_a_margin(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(net(x) - 6 * F.one_hot(y, 10), y)


class Taught(nn.Module):
    """A net and a slow copy of it that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(64, 48, 10)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def as_the_teacher(net: Any, batch: Batch) -> Tensor:
    x, y = batch
    with torch.no_grad():
        for slow, fast in zip(net.teacher.parameters(), net.student.parameters(), strict=True):
            slow.lerp_(fast, 0.05)
        taught = net.teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
    out = net.student(x + 0.3 * torch.randn_like(x))
    return F.cross_entropy(out[:8], y[:8]) + (out.softmax(1) - taught).square().sum(1).mean()


class Bumps(nn.Module):
    """Sixty bumps, whose places, widths and heights are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.widths = nn.Parameter(torch.randn(60, 4)), nn.Parameter(torch.zeros(60))
        self.out = nn.Linear(60, 1)

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.places).square().sum(-1)
        return self.out(torch.exp(-apart * F.softplus(self.widths)))


def as_tensor(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone().requires_grad_()


def by_hinge(net: nn.Module, batch: Batch) -> Tensor:
    return F.multi_margin_loss(net(batch[0]), batch[1])


class SomeDepth(nn.Module):
    """Residual blocks, of which some are left out at random while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(64, 48), nn.Linear(48, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU()) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            if not self.training or float(torch.rand(())) < 0.7:
                x = x + block(x)
        return self.head(x)


def mixed(net: nn.Module, batch: Batch) -> Tensor:
    """Two images laid over each other, named by both, with smooth labels."""
    x, y = batch
    share, order = 0.5 + 0.5 * float(torch.rand(())), torch.randperm(len(x))
    out = net(share * x + (1 - share) * x[order])
    one, other = (F.cross_entropy(out, labels, label_smoothing=0.1) for labels in (y, y[order]))
    return share * one + (1 - share) * other


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, 0.1, "gelu", batch_first=True), 2, enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.enter(x)).mean(1))


KINDS = [
    Kind("classes as directions", Recipe(Angular, digits(), by_a_margin, adam(3e-3), error_rate, steps=300)),
    Kind("taught by its own past", Recipe(Taught, digits(), as_the_teacher, adam(3e-3), error_rate, steps=300)),
    Kind(
        "bumps",
        Recipe(Bumps, table(64, 4), squared, adam(1e-2), steps=400),
        (
            Fault(
                "places and widths are tensors that require a gradient, and no parameters",
                "parameters in no optimizer",
                "https://github.com/automan000/Convolutional_LSTM_PyTorch/issues/17",
                m.both(m.unregistered("places", as_tensor), m.unregistered("widths", as_tensor)),
            ),
        ),
    ),
    Kind("hinge", Recipe(lambda: mlp(64, 48, 10), digits(), by_hinge, sgd(0.1), error_rate, steps=300)),
    Kind("mixed images, random depth", Recipe(SomeDepth, digits(), mixed, adamw(2e-3), error_rate, steps=300)),
    Kind(
        "eight batches a step, warm-up, clipped at one",
        Recipe(
            Rows,
            digits(8, 8, 8),
            cross_entropy,
            adamw(3e-3),
            error_rate,
            steps=120,
            schedule=lambda step: min(1.0, (step + 1) / 200),
            accumulate=8,
            clip=1.0,
        ),
    ),
    Kind(
        "half precision",
        Recipe(lambda: mlp(64, 64, 64, 10), digits(), cross_entropy, adam(2e-3), error_rate, precision="bf16-mixed"),
    ),
]
