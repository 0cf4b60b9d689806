"""Images in patches: attention and mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Recipe, adam, adamw
from ..tasks.digits import cross_entropy, digits, error_rate


class Patches(nn.Module):
    """A vision transformer over 2 x 2 patches, with a class token."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attend = nn.ModuleList(nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(2))
        self.mix = nn.ModuleList(nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for index in range(2):
            h = self.norms[2 * index](x)
            x = x + self.attend[index](h, h, h, need_weights=False)[0]
            x = x + self.mix[index](self.norms[2 * index + 1](x))
        return self.head(x[:, 0])


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 24)
        self.across = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.within = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(24) for _ in range(4))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index in range(2):
            x = x + F.gelu(self.across[index](self.norm[2 * index](x).transpose(1, 2))).transpose(1, 2)
            x = x + F.gelu(self.within[index](self.norm[2 * index + 1](x)))
        return self.head(x.mean(1))


def without_blocks(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([net.token, net.place, *net.head.parameters()], 2e-3)  # type: ignore[union-attr]


PATCHES = Recipe(Patches, digits(32, 1, 8, 8), cross_entropy, adamw(2e-3), error_rate, steps=300)


MIXER = Recipe(Mixer, digits(32, 8, 8), cross_entropy, adam(3e-3), error_rate, steps=300)


KINDS = [
    Kind(
        "vision transformer",
        PATCHES,
        (
            Fault(
                "rate of 0.3 from the first step",
                "rate too high",
                "https://github.com/wandb/senpai/pull/3119",
                m.setting(optimizer=adamw(0.3)),
            ),
            Fault(
                "blocks in a Python list",
                "parameters in no optimizer",
                "https://github.com/pytorch/pytorch/issues/1053",
                m.setting(optimizer=without_blocks),
            ),
        ),
    ),
    Kind(
        "mixer",
        MIXER,
        (
            Fault(
                "rate of 1e-7",
                "rate too low",
                "DeepFD, Cao et al. 2022: learning rate",
                m.setting(optimizer=adam(1e-7)),
            ),
        ),
    ),
]
