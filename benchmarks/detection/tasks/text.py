"""English text, character by character: the help pages that come with Python."""

from __future__ import annotations

import functools
import pydoc_data.topics

import torch
from torch import Generator, Tensor, nn

from ..recipe import Batch, Data


@functools.cache
def _tokens() -> tuple[Tensor, int]:
    raw = " ".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics)).lower()[:200_000]
    symbols = sorted(set(raw))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    return torch.tensor([index[c] for c in raw]), len(symbols)


def vocabulary() -> int:
    return _tokens()[1]


def text(batch_size: int = 16, length: int = 24) -> Data:
    """Windows of text, and the same one character later."""

    def draw(generator: Generator, train: bool) -> Batch:
        tokens, _ = _tokens()
        edge = int(0.9 * len(tokens))
        low, high = (0, edge - length - 1) if train else (edge, len(tokens) - length - 1)
        start = torch.randint(low, high, (batch_size,), generator=generator)
        window = tokens[start[:, None] + torch.arange(length + 1)]
        return window[:, :-1], window[:, 1:]

    return draw


def next_token(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten())
