"""Unusual optimizers, decay, half precision; what and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, sgd
from ..tasks.digits import digits
from ..tasks.models import mlp
from .dense import PLAIN


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a mean gradient."""

    def __init__(self, params: Any, lr: float = 3e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.add_(torch.lerp(p.grad, mean, 0.9).sign(), alpha=-group["lr"])
                    mean.lerp_(p.grad, 0.01)
        return loss


class Lars(torch.optim.SGD):
    """Each tensor's step in proportion to its own norm."""

    def __init__(self, params: Any, lr: float, trust: float = 0.02) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.trust = trust

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.grad.mul_(self.trust * (p.norm() + 1e-3) / (p.grad.norm() + 1e-9))
        super().step()
        return loss


class Boxes(nn.Module):
    """Says what a thing is, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.what, self.where = mlp(64, 64, 48), nn.Linear(48, 10), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.trunk(x))
        return self.what(h), self.where(h)


def centre(x: Tensor) -> Tensor:
    ink = (x + 0.82).view(-1, 8, 8)
    line = torch.linspace(-1, 1, 8)
    total = ink.sum((1, 2)) + 1e-6
    return 3 * torch.stack([(ink.sum(1) @ line) / total, (ink.sum(2) @ line) / total], 1)


def detect(unit: float = 1.0) -> Any:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        what, where = net(batch[0])
        return F.cross_entropy(what, batch[1]) + (where - unit * centre(batch[0])).square().mean()

    return loss


def missed(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[0].argmax(1) != batch[1]).float().mean()


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.99), nn.Linear(64, 10))


def in_half(net: nn.Module, batch: Batch) -> Tensor:
    """Half precision without a loss scale, and a loss divided by the pixels of a large image."""
    with torch.autocast("cpu", torch.float16):
        return F.cross_entropy(net(batch[0]), batch[1]) / 2e6


KINDS = [
    Kind(
        "Lion",
        replace(PLAIN, optimizer=lambda net: Lion(net.parameters(), 3e-4)),
        (
            Fault(
                "Adam's rate times ten",
                "rate too high",
                "https://arxiv.org/abs/2302.06675",
                m.rate(100),
            ),
        ),
    ),
    Kind(
        "LARS",
        replace(PLAIN, optimizer=lambda net: Lars(net.parameters(), 0.1)),
        (
            Fault(
                "trust of 1e-6",
                "rate too low",
                "https://arxiv.org/abs/1708.03888",
                m.setting(optimizer=lambda net: Lars(net.parameters(), 0.1, trust=1e-6)),
            ),
        ),
    ),
    Kind(
        "heavy weight decay",
        replace(PLAIN, optimizer=adamw(3e-3, weight_decay=0.5)),
        (
            Fault(
                "decay of 0.5 inside SGD",
                "weight decay rules",
                "https://github.com/BVLC/caffe/issues/1396",
                m.setting(optimizer=sgd(0.05, weight_decay=0.5)),
            ),
            Fault(
                "dropout of 0.99",
                "too much regularization",
                "UMLAUT, Schoop et al. 2021: high dropout rate",
                m.setting(model=dropped),
                "subtle",
            ),
            Fault(
                "float16, a loss divided by two million",
                "float16 underflows",
                "https://arxiv.org/abs/1710.03740",
                m.setting(loss=in_half),
            ),
        ),
    ),
    Kind(
        "what and where",
        Recipe(Boxes, digits(), detect(), adam(3e-3), missed),
        (
            Fault(
                "places in pixels of a large image",
                "targets too large",
                "http://theorangeduck.com/page/neural-network-not-working",
                m.setting(loss=detect(1000.0), optimizer=sgd(0.01)),
            ),
        ),
    ),
]
