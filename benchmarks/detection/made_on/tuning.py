"""Runs that look odd and are well: adapters, frozen parts, schedules, tiny batches."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from .dense import PLAIN


@functools.cache
def pretrained() -> dict[str, Tensor]:
    """The weights of a network that knows digits, pixels in reverse."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, data = mlp(64, 48, 48, 10), digits(64)
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            x, y = data(generator, True)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x.flip(1)), y).backward()
            optimizer.step()
    return net.state_dict()


def known() -> nn.Sequential:
    net = mlp(64, 48, 48, 10)
    net.load_state_dict(pretrained())
    return net


class LowRank(nn.Module):
    """A frozen layer and a low-rank change of it, which begins at zero."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def adapted() -> nn.Sequential:
    net = known()
    return nn.Sequential(*[LowRank(part) if isinstance(part, nn.Linear) else part for part in net])


def frozen_trunk() -> nn.Sequential:
    net = known()
    for part in net[:2]:
        part.requires_grad_(False)
    return net


def one_batch(generator: Generator, train: bool) -> Batch:
    return digits(16)(torch.Generator().manual_seed(1), True)


def dropped() -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(0.3), nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.6), nn.Linear(96, 96), nn.ReLU(), nn.Dropout(0.6),
        nn.Linear(96, 10),
    )  # fmt: skip


def cosine(step: int, length: int = 400) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step % length) / length))


LORA = Recipe(adapted, digits(), cross_entropy, adam(1e-2), error_rate)

KINDS = [
    Kind(
        "low-rank adapters",
        LORA,
        (
            Fault(
                "both factors begin at zero",
                "weights begin at zero",
                "https://github.com/Guitaricet/relora/issues/18",
                m.weights(lambda name, p: p.zero_() if name.endswith("down") else None),
            ),
            Fault(
                "the factor that begins at zero is frozen",
                "frozen by mistake",
                "https://github.com/microsoft/LoRA/pull/125",
                m.weights(lambda name, p: p.requires_grad_(name.endswith("down"))),
            ),
            Fault(
                "the factor that begins at zero is frozen, and the optimizer holds what is not",
                "frozen by mistake",
                "https://github.com/huggingface/transformers/issues/26098",
                m.both(
                    m.weights(lambda name, p: p.requires_grad_(name.endswith("down"))),
                    m.setting(
                        optimizer=lambda net: torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
                    ),
                ),
            ),
        ),
    ),
    Kind("frozen trunk", Recipe(frozen_trunk, digits(), cross_entropy, adam(3e-3), error_rate)),
    Kind("one batch, to be learnt by heart", replace(PLAIN, data=one_batch, optimizer=adam(3e-3))),
    Kind("converged long ago", replace(PLAIN, model=lambda: mlp(64, 96, 10), steps=1200, per_epoch=40)),
    Kind("warm restarts", replace(PLAIN, schedule=lambda step: cosine(step, 100) + 1e-3)),
    Kind("decay to zero", replace(PLAIN, schedule=cosine)),
    Kind("heavy dropout", replace(PLAIN, model=dropped, optimizer=adam(3e-3), steps=600)),
    Kind(
        "batches of two",
        replace(PLAIN, data=digits(2), optimizer=sgd(0.005), steps=800, per_epoch=400),
        (
            Fault(
                "rate of large batches",
                "rate too high",
                "Humbatova et al. 2020, taxonomy: suboptimal learning rate",
                m.rate(100),
            ),
        ),
    ),
    Kind("accumulation of four batches", replace(PLAIN, data=digits(8), accumulate=4, steps=300)),
    Kind(
        "Adagrad",
        replace(PLAIN, optimizer=lambda net: torch.optim.Adagrad(net.parameters(), 0.03)),
        (
            Fault(
                "Adagrad's rate of 1e-5",
                "rate too low",
                "DeepFD, Cao et al. 2022: learning rate",
                m.rate(1e-3),
            ),
        ),
    ),
]
