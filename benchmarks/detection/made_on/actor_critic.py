"""An actor and its critic, in a room where one walks to a corner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.models import mlp
from .control import nothing

SIDE = 4
MOVES = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = mlp(2, 32, 32), nn.Linear(32, 4), nn.Linear(32, 1)
        self.kept: tuple[Tensor, ...] | None = None
        self.used = 0

    def forward(self, at: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(at / SIDE * 2 - 0.75))
        return F.log_softmax(self.actor(h), -1), self.critic(h).squeeze(-1)


@torch.no_grad()
def rollout(net: Any, walkers: int = 32, steps: int = 12) -> tuple[Tensor, ...]:
    """Places, moves, their log probabilities, and what came after them."""
    at = torch.randint(SIDE, (walkers, 2))
    places, moves, logs, rewards = [], [], [], []
    for _ in range(steps):
        scores, _ = net(at.float())
        move = torch.multinomial(scores.exp(), 1).squeeze(1)
        places.append(at.float())
        moves.append(move)
        logs.append(scores.gather(1, move[:, None]).squeeze(1))
        at = (at + MOVES[move]).clamp(0, SIDE - 1)
        rewards.append((at == SIDE - 1).all(1).float() - 0.1)
    returns = torch.zeros(walkers)
    after = []
    for reward in reversed(rewards):
        returns = reward + 0.8 * returns
        after.append(returns)
    return torch.cat(places), torch.cat(moves), torch.cat(logs), torch.cat(after[::-1]), torch.stack(rewards)


def clipped(scale: float = 1.0, entropy: float = 0.01) -> Any:
    """Proximal policy: each rollout serves four steps."""

    def loss(net: Any, batch: Batch) -> Tensor:
        if net.used % 4 == 0:
            net.kept = rollout(net)
        net.used += 1
        places, moves, logs, returns, _ = net.kept
        returns = scale * returns
        scores, value = net(places)
        gain = returns - value.detach()
        gain = (gain - gain.mean()) / (gain.std() + 1e-6)
        ratio = (scores.gather(1, moves[:, None]).squeeze(1) - logs).exp()
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        spread = -(scores.exp() * scores).sum(1).mean()
        return policy + 0.5 * (value - returns).square().mean() - entropy * spread

    return loss


def regret(net: nn.Module, batch: Batch) -> Tensor:
    return -rollout(net, 128)[4].sum(0).mean()


KINDS = [
    Kind(
        "actor and critic, clipped",
        Recipe(ActorCritic, nothing, clipped(), adam(5e-3), regret, steps=400),
        (
            Fault(
                "rewards of 1e4",
                "targets too large",
                "https://arxiv.org/abs/1709.06560",
                m.setting(loss=clipped(1e4)),
            ),
            Fault(
                "entropy weighted by 100",
                "too much regularization",
                "https://arxiv.org/abs/2006.05990",
                m.setting(loss=clipped(1.0, 100.0)),
                "subtle",
            ),
        ),
    ),
]
