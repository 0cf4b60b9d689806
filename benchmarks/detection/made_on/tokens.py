"""Transformers whose tokens are no words: the columns of a table, and latents that ask pixels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adamw
from ..tasks.digits import cross_entropy, digits, error_rate
from .medicine import biopsies


def twelve_columns(generator: Generator, train: bool) -> Batch:
    x, y = biopsies()(generator, train)
    return x[:, :12], y.long()


class OfColumns(nn.Module):
    """A token for each of twelve columns, and one to read the answer from."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(0.5 * torch.randn(12, width)), nn.Parameter(0.1 * torch.randn(12, width))
        self.answer = nn.Parameter(0.1 * torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[..., None] * self.scale + self.shift
        tokens = torch.cat([self.answer.expand(len(x), -1, -1), tokens], 1)
        return self.out(self.layers(tokens)[:, 0])


class OfLatents(nn.Module):
    """Eight latents that attend to 64 pixels, then to each other."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.pixel, self.place = nn.Linear(1, width), nn.Parameter(0.3 * torch.randn(64, width))
        self.latents = nn.Parameter(0.3 * torch.randn(8, width))
        self.cross = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.among = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norms[0](self.pixel(x[..., None]) + self.place)
        latents = self.latents.expand(len(x), -1, -1)
        latents = latents + self.cross(self.norms[1](latents), pixels, pixels)[0]
        return self.out(self.norms[2](self.among(latents)).mean(1))


KINDS = [
    Kind(
        "columns as tokens",
        Recipe(
            OfColumns,
            twelve_columns,
            cross_entropy,
            lambda net: torch.optim.RAdam(net.parameters(), lr=3e-3),
            cross_entropy,
            steps=150,
            per_epoch=50,
            clip=1.0,
        ),
        (
            Fault(
                "RAdam at 0.6",
                "rate too high",
                "https://github.com/LiyuanLucasLiu/RAdam/issues/66",
                m.rate(200.0),
            ),
        ),
    ),
    Kind(
        "few latents, many pixels",
        Recipe(OfLatents, digits(32), cross_entropy, adamw(3e-3, weight_decay=0.01), error_rate, steps=200, clip=1.0),
        (
            Fault(
                "all but the head frozen, without pretrained weights",
                "frozen by mistake",
                "https://github.com/pytorch/vision/issues/2164",
                m.frozen("pixel.", "place", "latents", "cross.", "norms.", "among."),
            ),
        ),
    ),
]
