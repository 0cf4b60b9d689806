"""Values of steps on a board, learnt from a replay buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Recipe
from ..tasks.models import mlp

_STEPS = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])  # on a board of five by five fields
_GOAL = 24


class Values(nn.Module):
    """What each of four steps is worth on a field, and a copy of it that follows every 15 batches."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.before = mlp(25, 48, 4), mlp(25, 48, 4)
        self.before.requires_grad_(False)
        self.follow()
        self.num_seen = 0

    def forward(self, fields: Tensor) -> Tensor:
        return self.now(fields)

    def follow(self) -> None:
        self.before.load_state_dict(self.now.state_dict())

    def count(self) -> None:
        self.num_seen += 1
        if self.num_seen % 15 == 0:
            self.follow()


def reached(field: Tensor, action: Tensor) -> Tensor:
    """The field that a step leads to; the edge holds it back."""
    place = (torch.stack([field // 5, field % 5], -1) + _STEPS[action]).clamp(0, 4)
    return place[..., 0] * 5 + place[..., 1]


def replay(scale: float = 1.0) -> Data:
    def draw(generator: Generator, train: bool) -> Batch:
        num = 64 if train else 200
        field = torch.randint(24, (num,), generator=generator)
        action = torch.randint(4, (num,), generator=generator)
        after = reached(field, action)
        reward = scale * torch.where(after == _GOAL, 1.0, -0.04)
        return field, action, after, reward, (after == _GOAL).float()

    return draw


def seen(field: Tensor) -> Tensor:
    return F.one_hot(field, 25).float()


def temporal_difference(net: Any, batch: Batch) -> Tensor:
    if net.training:
        net.count()
    field, action, after, reward, done = batch
    aim = reward + 0.9 * (1 - done) * net.before(seen(after)).max(1).values
    return F.smooth_l1_loss(net(seen(field)).gather(1, action[:, None])[:, 0], aim)


def astray(net: nn.Module, batch: Batch) -> Tensor:
    """Share of fields where the best step, as the net sees it, leads no nearer to the goal."""
    field = torch.arange(24)
    after = reached(field, net(seen(field)).argmax(1))
    return (to_go(after) >= to_go(field)).float().mean()


def to_go(field: Tensor) -> Tensor:
    return 8 - field // 5 - field % 5


def rmsprop(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(net.parameters(), lr=2e-3)


KINDS = [
    Kind(
        "q-learning, replayed",
        Recipe(Values, replay(), temporal_difference, rmsprop, astray, steps=400),
        (
            Fault(
                "RMSprop, a ten-thousandth of the rate",
                "rate too low",
                "DeepCrime HLR (Humbatova et al. 2021)",
                m.rate(1e-4),
            ),
            Fault(
                "rewards in cents of a thousand",
                "targets too large",
                "https://github.com/google-deepmind/open_spiel/issues/742",
                m.setting(data=replay(1e4)),
            ),
        ),
    ),
]
