"""Reinforcement learning in a corridor: walk to its right end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.models import mlp

LENGTH = 8


def walk(policy: Any, episodes: int = 8, steps: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Log probabilities, rewards and places of some episodes; a step costs 0.1, the end pays 1."""
    at = torch.zeros(episodes, dtype=torch.long)
    logs, rewards, places = [], [], []
    for _ in range(steps):
        seen = F.one_hot(at, LENGTH).float()
        scores = F.log_softmax(policy(seen), 1)
        action = torch.multinomial(scores.exp(), 1)
        arrived = at == LENGTH - 1
        at = torch.where(arrived, at, (at + 2 * action.squeeze(1) - 1).clamp(0, LENGTH - 1))
        rewards.append(torch.where(arrived, 0.0, torch.where(at == LENGTH - 1, 1.0, -0.1)))
        logs.append(scores.gather(1, action).squeeze(1))
        places.append(seen)
    return torch.stack(logs), torch.stack(rewards), torch.stack(places)


def reinforce(sign: float = 1.0) -> Any:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        logs, rewards, _ = walk(net)
        returns = rewards.flip(0).cumsum(0).flip(0)
        return -sign * (logs * (returns - returns.mean())).mean()

    return loss


def regret(net: nn.Module, batch: Batch) -> Tensor:
    return -walk(net, episodes=64)[1].sum(0).mean()


def transitions(generator: Generator, train: bool) -> Batch:
    """What a random walk saw: place, action, reward, next place, whether that was the end."""
    at = torch.randint(LENGTH - 1, (64,), generator=generator)
    action = torch.randint(2, (64,), generator=generator)
    then = (at + 2 * action - 1).clamp(0)
    done = (then == LENGTH - 1).float()
    return at, action, done - 0.1 * (1 - done), then, done


class Values(nn.Module):
    """A network of action values, and the copy that targets are read from."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = mlp(LENGTH, 32, 2), mlp(LENGTH, 32, 2)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x)


def q_learning(discount: float = 0.9, scale: float = 1.0) -> Any:
    def loss(net: Any, batch: Batch) -> Tensor:
        at, action, reward, then, done = batch
        net.seen += 1
        if net.seen % 20 == 0:
            net.target.load_state_dict(net.online.state_dict())
        value = net.online(F.one_hot(at, LENGTH).float()).gather(1, action[:, None]).squeeze(1)
        best = net.target(F.one_hot(then, LENGTH).float()).amax(1)
        return F.smooth_l1_loss(value, scale * reward + discount * (1 - done) * best)

    return loss


def true_values(discount: float = 0.9) -> Tensor:
    """What each place and action is worth to who walks well."""
    values = torch.zeros(LENGTH, 2)
    for _ in range(50):
        best = values.amax(1)
        for at in range(LENGTH - 1):
            for action, then in enumerate((max(at - 1, 0), at + 1)):
                done = then == LENGTH - 1
                values[at, action] = 1.0 if done else -0.1 + discount * best[then]
    return values[:-1]


def misjudged(net: nn.Module, batch: Batch) -> Tensor:
    return (net(torch.eye(LENGTH)[:-1]) - true_values()).square().mean()


def nothing(generator: Generator, train: bool) -> Batch:
    return torch.zeros(1)


def online_only(net: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.online.parameters(), 5e-3)


POLICY = Recipe(lambda: mlp(LENGTH, 32, 2), nothing, reinforce(), adam(1e-2), regret, steps=250)
VALUES = Recipe(Values, transitions, q_learning(), online_only, misjudged, steps=500)

KINDS = [
    Kind(
        "REINFORCE",
        POLICY,
        (
            Fault(
                "sign of the policy loss",
                "loss is maximized",
                "https://github.com/KanishJebaMathewM/Truxify/pull/11885",
                m.setting(loss=reinforce(-1.0)),
                "subtle",
            ),
        ),
    ),
    Kind(
        "Q-learning",
        VALUES,
        (
            Fault(
                "discount of 1.2",
                "values chase each other",
                "https://github.com/muupan/dqn-in-the-caffe/issues/6",
                m.setting(loss=q_learning(1.2)),
            ),
        ),
    ),
]
