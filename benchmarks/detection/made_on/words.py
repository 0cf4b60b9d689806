"""Sequences of symbols: translation, gaps to be filled."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.text import text, vocabulary

SIZE = 12


def reversal(generator: Generator, train: bool) -> Batch:
    """Eight symbols, and the same backwards; decoding begins with a zero."""
    x = torch.randint(1, SIZE, (32, 8), generator=generator)
    y = x.flip(1)
    return x, F.pad(y[:, :-1], (1, 0)), y


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(SIZE, 32), nn.Parameter(torch.randn(8, 32))
        self.net = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, SIZE)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        h = self.net(self.embed(source) + self.place, self.embed(target) + self.place, tgt_mask=self.mask)
        return self.head(h)


def translate(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0], batch[1]).flatten(0, 1), batch[2].flatten())


@counts_errors
def mistranslated(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0], batch[1]).argmax(-1) != batch[2]).float().mean()


class Filler(nn.Module):
    """An encoder that says what stood in the gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary() + 1, 32), nn.Embedding(24, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x) + self.place.weight))


def gaps(generator: Generator, train: bool) -> Batch:
    x, _ = text(16)(generator, train)
    hidden = torch.rand(x.shape, generator=generator) < 0.2
    return x.masked_fill(hidden, vocabulary()), x, hidden


def fill(net: nn.Module, batch: Batch) -> Tensor:
    x, truth, hidden = batch
    return F.cross_entropy(net(x)[hidden], truth[hidden])


KINDS = [
    Kind(
        "translation by transformer",
        Recipe(Translator, reversal, translate, adam(3e-3), mistranslated, steps=300),
        (
            Fault(
                "rate of 0.05 without a warm-up",
                "rate too high",
                "https://github.com/LiyuanLucasLiu/Transformer-Clinic/issues/9",
                m.setting(optimizer=adam(0.05)),
            ),
        ),
    ),
    Kind(
        "gaps in text",
        Recipe(Filler, gaps, fill, adam(3e-3), steps=300),
        (
            Fault(
                "every token is the unknown one",
                "input is constant",
                "https://github.com/graph4ai/graph4nlp/issues/499",
                m.inputs(torch.zeros_like),
                "subtle",
            ),
            Fault(
                "warm-up of a million steps",
                "rate too low",
                "https://github.com/hirofumi0810/neural_sp/issues/137",
                m.setting(schedule=lambda step: (step + 1) / 1e6),
            ),
        ),
    ),
]
