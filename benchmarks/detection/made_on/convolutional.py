"""Convolutions on digits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.digits import cross_entropy, digits, error_rate


def plain(depth: int = 3, activation: Any = nn.ReLU, norm: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    channels = 1
    for index in range(depth):
        parts.append(nn.Conv2d(channels, 8, 3, padding=1, stride=2 if index in (1, 2) else 1))
        parts += [nn.BatchNorm2d(8)] if norm else []
        parts.append(activation())
        channels = 8
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(32, 10))


class Residual(nn.Module):
    """Two blocks with shortcuts, activations as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]) for _ in "123")
        self.fc = nn.Linear(8, 10)
        self.cut = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in self.blocks:
            x = x + F.relu(norm(conv(x)))
        x = F.max_pool2d(x, 2)
        return self.fc((x.detach() if self.cut else x).mean((2, 3)))


def of_momentum(momentum: float) -> m.Change:
    """Each batch has this share in the running statistics."""

    def change(net: nn.Module) -> None:
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = momentum

    return m.model(change)


def of_a_copy(net: nn.Module, batch: Batch) -> Tensor:
    """The weights are those of the net, the statistics those of a copy that is thrown away."""
    state = {**dict(net.named_parameters()), **{name: buffer.clone() for name, buffer in net.named_buffers()}}
    return F.cross_entropy(torch.func.functional_call(net, state, (batch[0],)), batch[1])


class Evaluating(nn.Module):
    """Keeps its normalization in evaluation mode, as recipes for trained networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain(10)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def cut(net: nn.Module) -> None:
    net.cut = True  # type: ignore[assignment]


PLAIN = Recipe(plain, digits(32, 1, 8, 8), cross_entropy, sgd(0.05), error_rate, steps=300)
RESIDUAL = Recipe(Residual, digits(32, 1, 8, 8), cross_entropy, adam(1e-2), error_rate, steps=300)
DEEP = Recipe(
    lambda: plain(10), digits(32, 1, 8, 8), cross_entropy, sgd(0.05), error_rate, steps=300
)  # fmt: skip

KINDS = [
    Kind(
        "convolutions with batch norm",
        PLAIN,
        (
            Fault(
                "learning rate of zero",
                "rate is zero",
                "https://github.com/CN-zdy/MSU_Net/issues/13",
                m.setting(optimizer=sgd(0.0)),
            ),
            Fault(
                "pixels from 0 to 255, no norm",
                "input too large",
                "https://github.com/keras-team/keras/issues/2711",
                m.both(m.setting(model=lambda: plain(norm=False)), m.inputs(lambda x: (x + 0.83) * 97)),
            ),
        ),
    ),
    Kind(
        "residual network, functional",
        RESIDUAL,
        (
            Fault(
                "last layer frozen by mistake",
                "frozen by mistake",
                "https://github.com/wannabeOG/MAS-PyTorch/issues/1",
                m.frozen("fc."),
            ),
            Fault(
                "detach() before the head",
                "graph is cut",
                "https://github.com/pytorch/pytorch/issues/7462",
                m.model(cut),
            ),
            Fault(
                "momentum of 0 in its normalization",
                "statistics do not follow",
                "https://github.com/Cadene/pretrained-models.pytorch/issues/5",
                of_momentum(0.0),
            ),
            Fault(
                "forward passes of a copy of the net, by functional_call",
                "statistics do not follow",
                "https://github.com/facebookresearch/higher/issues/55",
                m.setting(loss=of_a_copy),
            ),
        ),
    ),
    Kind(
        "ten convolutions with batch norm",
        DEEP,
        (
            Fault(
                "sigmoid, no norm",
                "gradient vanishes over depth",
                "AUTOTRAINER, Zhang et al. 2021: vanishing gradient",
                m.setting(model=lambda: plain(10, nn.Sigmoid, norm=False)),
            ),
            Fault(
                "weights from N(0, 1), no norm",
                "weights begin too large",
                "Humbatova et al. 2020, taxonomy: wrong weights initialization",
                m.both(
                    m.setting(model=lambda: plain(10, norm=False)),
                    m.weights(lambda name, p: torch.nn.init.normal_(p) if p.dim() > 1 else None),
                ),
            ),
            Fault(
                "momentum of 1e-4, as if it were what is kept",
                "statistics do not follow",
                "https://github.com/pytorch/examples/issues/289",
                of_momentum(1e-4),
            ),
            Fault(
                "normalization in evaluation mode",
                "statistics do not follow",
                "https://github.com/princeton-vl/CER-MVS/issues/2",
                m.setting(model=Evaluating),
            ),
        ),
    ),
]
