"""Transformers, before and after the norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Recipe, adam, adamw, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.text import next_token, text, vocabulary


class Block(nn.Module):
    """Pre-norm, with attention as a function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.ln_1(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Decoder(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary(), width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary(), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.ln(h))


class Encoder(nn.Module):
    """Post-norm, PyTorch's own layers; the rows of a digit are the words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(8, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.place).mean(1))


def warm_up(step: int) -> float:
    return min(1.0, (step + 1) / 100)


DECODER = Recipe(Decoder, text(), next_token, adamw(3e-3), steps=300, schedule=warm_up, clip=1.0)


ENCODER = Recipe(Encoder, digits(32, 8, 8), cross_entropy, adam(2e-3), error_rate, steps=300)


KINDS = [
    Kind(
        "decoder transformer, pre-norm",
        DECODER,
        (
            Fault(
                "gradient_clip_val=1e-4 with SGD",
                "clipping rules",
                "https://github.com/twtygqyy/pytorch-vdsr/issues/2",
                m.setting(optimizer=sgd(0.3), schedule=None, clip=1e-4),
            ),
            Fault(
                "queries and keys begin a hundred times too large",
                "attention is saturated",
                "https://arxiv.org/abs/2303.06296",
                m.weights(lambda name, p: p[:64].mul_(100) if name.endswith("qkv.weight") else None),
            ),
            Fault(
                "StepLR per batch instead of per epoch",
                "rate decays too early",
                "https://github.com/leftthomas/SRGAN/issues/94",
                m.setting(schedule=lambda step: 0.1 ** (step // 3)),
            ),
        ),
    ),
    Kind(
        "encoder transformer, post-norm",
        ENCODER,
        (
            Fault(
                "encoder left out of the optimizer",
                "parameters in no optimizer",
                "https://github.com/zjunlp/HVPNeT/issues/5",
                m.setting(optimizer=lambda net: torch.optim.Adam(net.head.parameters(), 2e-3)),
            ),
            Fault(
                "learning rate of 0.1",
                "rate too high",
                "https://github.com/fastai/fastai/issues/1736",
                m.setting(optimizer=adam(0.1)),
            ),
        ),
    ),
]
