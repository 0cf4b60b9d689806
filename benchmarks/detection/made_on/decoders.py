"""Token after token: a small GPT whose head is its embedding, and a translation that attends."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, counts_errors
from ..tasks.text import next_token, text, vocabulary

_BEGIN = 12  # the token before the first


class Block(nn.Module):
    """Attention to what came before, then two layers; each behind a norm and beside a skip."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.other_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        num, length, width = x.shape
        parts = self.attend(self.norm(x)).chunk(3, -1)
        q, k, v = (part.view(num, length, self.num_heads, -1).transpose(1, 2) for part in parts)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(heads.transpose(1, 2).reshape(num, length, width))
        return x + self.down(F.gelu(self.up(self.other_norm(x))))


class TiedGPT(nn.Module):
    def __init__(self, std: float = 0.05, width: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary(), width), nn.Embedding(24, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.token.weight.T


class Translation(nn.Module):
    """Reads in both directions, then writes a token at a time and looks back at what it read.

    Args:
        detached: whether no gradient goes from the writer to the reader.
    """

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        self.token = nn.Embedding(13, 24)
        self.reader = nn.GRU(24, 32, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(32, 32)
        self.writer = nn.GRUCell(24 + 64, 32)
        self.ask, self.out = nn.Linear(32, 64), nn.Linear(96, 13)
        self.detached = detached

    def forward(self, batch: Batch) -> Tensor:
        """Scores of each token of the answer, given those before it."""
        source, target = batch
        memory, h = self.reader(self.token(source))
        h = torch.tanh(self.bridge(h[0]))
        if self.detached:
            memory, h = memory.detach(), h.detach()
        said = []
        for t in range(target.shape[1]):
            before = torch.full_like(target[:, 0], _BEGIN) if t == 0 else target[:, t - 1]
            context = self._recalled(memory, h)
            h = self.writer(torch.cat([self.token(before), context], 1), h)
            said.append(self.out(torch.cat([h, context], 1)))
        return torch.stack(said, 1)

    def _recalled(self, memory: Tensor, h: Tensor) -> Tensor:
        shares = torch.softmax((memory @ self.ask(h)[:, :, None])[..., 0] / 8, 1)
        return (shares[:, None] @ memory)[:, 0]


def backwards(generator: Generator, train: bool) -> Batch:
    x = torch.randint(12, (32 if train else 96, 6), generator=generator)
    return x, x.flip(1)


def written(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch).flatten(0, 1), batch[1].flatten())


@counts_errors
def miswritten(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch).argmax(-1) != batch[1]).float().mean()


KINDS = [
    Kind(
        "gpt, weights tied",
        Recipe(
            TiedGPT,
            text(16),
            next_token,
            adamw(3e-3, betas=(0.9, 0.95), weight_decay=0.1),
            next_token,
            steps=200,
            clip=1.0,
            schedule=lambda step: min(1, (step + 1) / 20),
        ),
        (
            Fault(
                "AdamW, a hundred times the rate",
                "rate too high",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(100.0),
            ),
            Fault(
                "every matrix drawn with std 1 (the head is the embedding)",
                "weights begin too large",
                "https://github.com/PiotrNawrot/nanoT5/issues/25",
                m.setting(model=lambda: TiedGPT(1.0)),
            ),
        ),
    ),
    Kind(
        "translation with attention",
        Recipe(Translation, backwards, written, adam(1e-2), miswritten, steps=250, per_epoch=125, clip=1.0),
        (
            Fault(
                "encoder outputs go on through .detach()",
                "graph is cut",
                "https://github.com/rsarxiv/seq2seq-attention/issues/7",
                m.setting(model=lambda: Translation(detached=True)),
            ),
            Fault(
                "Adam, a thousandth of the rate",
                "rate too low",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(1e-3),
            ),
        ),
    ),
]
