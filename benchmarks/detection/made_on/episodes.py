"""An agent that tries, and classes of which a few examples are all that there is."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Loss, Recipe, adam, counts_errors, sgd
from ..tasks.digits import error_rate
from ..tasks.models import mlp


class Agent(nn.Module):
    """How likely each action is, and what the state is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 5))
        self.value = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def states(generator: Generator, train: bool) -> Batch:
    """A state, and the one action that is rewarded in it."""
    x = torch.randn(64 if train else 256, 6, generator=generator)
    rewarded = torch.randn(6, 5, generator=torch.Generator().manual_seed(13))
    return x, (x @ rewarded).argmax(1)


def policy_gradient(sign: float = 1.0) -> Loss:
    """One try in each state, its advantage, the error of the value, and a little for entropy."""

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        policy = Categorical(logits=net(batch[0]))
        action = policy.sample()
        reward = (action == batch[1]).float()
        value = net.value(batch[0])[:, 0]
        tried = sign * (-(policy.log_prob(action) * (reward - value.detach())).mean())
        return tried + 0.5 * ((value - reward) ** 2).mean() - 0.01 * policy.entropy().mean()

    return loss


def rmsprop(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(net.parameters(), lr=3e-3)


class Encoder(nn.Module):
    """A place for each example, near to others of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(24, 48, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def episode(generator: Generator, train: bool) -> Batch:
    """Five classes of eleven examples, five to learn from and six to tell; two thirds of the features are noise."""
    centre = torch.randn(5, 4, generator=generator) * 2
    mix = torch.randn(4, 8, generator=torch.Generator().manual_seed(21))
    signal = centre[:, None] @ mix + 0.3 * torch.randn(5, 11, 8, generator=generator)
    noise = 4 * torch.randn(5, 11, 16, generator=generator)
    return torch.cat([signal, noise], 2), torch.arange(5).repeat_interleave(6)


def nearness(net: nn.Module, batch: Batch) -> Tensor:
    """Minus the squared distance of each example to the mean of each class."""
    code = net(batch[0])
    return -(torch.cdist(code[:, 5:].flatten(0, 1), code[:, :5].mean(1)) ** 2)


def nearest(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(nearness(net, batch), batch[1])


@counts_errors
def another_is_nearer(net: nn.Module, batch: Batch) -> Tensor:
    return (nearness(net, batch).argmax(1) != batch[1]).float().mean()


KINDS = [
    Kind(
        "agent that learns by trial",
        Recipe(Agent, states, policy_gradient(), rmsprop, error_rate, steps=300),
        (
            Fault(
                "RMSprop, a hundred times the rate",
                "rate too high",
                "https://github.com/Unity-Technologies/ml-agents/issues/1336",
                m.rate(100.0),
            ),
            Fault(
                "advantage with the wrong sign",
                "loss is maximized",
                "https://github.com/KanishJebaMathewM/Truxify/pull/11885",
                m.setting(loss=policy_gradient(sign=-1.0)),
                "hidden",
            ),
            Fault(
                "RMSprop, a thousandth of the rate",
                "rate too low",
                "DeepCrime, Humbatova et al. 2021: HLR",
                m.rate(1e-3),
            ),
        ),
    ),
    Kind(
        "few examples each",
        Recipe(Encoder, episode, nearest, adam(3e-3), another_is_nearer, steps=250),
        (
            Fault(
                "every weight 0.1",
                "units are identical",
                "DeepCrime, Humbatova et al. 2021: WCI: constant",
                m.weights(lambda name, p: p.fill_(0.1)),
            ),
            Fault(
                "SGD with momentum at 3 where Adam was",
                "rate too high",
                "https://github.com/ultralytics/yolov3/issues/4",
                m.setting(optimizer=sgd(3.0, 0.9)),
            ),
            Fault(
                "Adam, three-thousandth of the rate",
                "rate too low",
                "DeepCrime, Humbatova et al. 2021: HLR",
                m.rate(1 / 3000),
            ),
        ),
    ),
]
