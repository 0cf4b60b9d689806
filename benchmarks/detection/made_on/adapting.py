"""Fine-tuning: prompts, adapters, unfreezing; experts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Recipe, adam
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp
from .recurrent import Rows
from .tuning import known


class Prompted(nn.Module):
    """A frozen reader of rows, and three rows before them that are learnt; only they and the head train."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.body = Rows().requires_grad_(False)
        self.prompt, self.head = nn.Parameter(0.1 * torch.randn(3, 8)), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.cat([self.prompt.expand(len(x), -1, -1), x], 1)))


class Adapted(nn.Module):
    """A frozen network that knows digits in reverse, behind a layer that turns what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter, self.body = nn.Linear(64, 64), known().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + self.adapter(x))


class Thawing(nn.Module):
    """The head first; from the hundredth step the layer before it; then all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.steps = known().requires_grad_(False), 0
        self.body[4].requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            if self.steps % 100 == 0:
                self.body[4 - 2 * min(2, self.steps // 100)].requires_grad_(True)
        return self.body(x)


class Experts(nn.Module):
    """Each image goes to the best of four experts."""

    def __init__(self, pull: float = 0.0) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(64, 4), nn.ModuleList(mlp(64, 4, 10) for _ in range(4))
        with torch.no_grad():
            self.router.bias[0] += pull
            self.router.weight *= 0.1 if pull else 1.0

    def forward(self, x: Tensor) -> Tensor:
        chance, chosen = F.softmax(self.router(x), 1).max(1)
        out = x.new_zeros(len(x), 10)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            out[mine] = expert(x[mine])
        return out * chance[:, None] * 2


TUNED = Recipe(known, digits(), cross_entropy, adam(1e-3), error_rate)


KINDS = [
    Kind("learnt prompt", Recipe(Prompted, digits(32, 8, 8), cross_entropy, adam(2e-2), error_rate, steps=300)),
    Kind("adapter before a frozen network", replace(TUNED, model=Adapted)),
    Kind("gradual unfreezing", replace(TUNED, model=Thawing, optimizer=adam(3e-3))),
    Kind(
        "sparse experts",
        Recipe(Experts, digits(), cross_entropy, adam(5e-3), error_rate),
        (
            Fault(
                "the experts are kept in a plain tuple",
                "parameters in no optimizer",
                "https://github.com/ikostrikov/pytorch-meta-optimizer/issues/11",
                m.unregistered("experts", tuple),
            ),
            Fault(
                "router that sends all to one",
                "a part starves",
                "https://arxiv.org/abs/1701.06538",
                m.setting(model=lambda: Experts(20.0)),
                "subtle",
            ),
        ),
    ),
]
