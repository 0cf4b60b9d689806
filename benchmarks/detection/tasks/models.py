"""The network that most kinds have somewhere."""

from __future__ import annotations

import itertools

from torch import nn


def mlp(*sizes: int, last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers with ReLUs between them, and ``last`` behind."""
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1], *([last] if last else []))
