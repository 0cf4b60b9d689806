"""Two nets that meet, hinges against each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.digits import digits
from ..tasks.models import mlp
from ..tasks.synthetic import distance, ring


class Towers(nn.Module):
    """The upper half of an image and the lower one, brought to the same place; how sharply is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = mlp(32, 48, 16), mlp(32, 48, 16)
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.normalize(self.upper(x[:, :32])), F.normalize(self.lower(x[:, 32:]))
        return self.sharpness.exp() * one @ other.T


def matched(net: nn.Module, batch: Batch) -> Tensor:
    scores, right = net(batch[0]), torch.arange(len(batch[0]))
    return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


@counts_errors
def not_matched(net: nn.Module, batch: Batch) -> Tensor:
    """Whether the partner is not among the best four."""
    scores = net(batch[0][:32])
    return (scores.argsort(1, descending=True)[:, :4] != torch.arange(len(scores))[:, None]).all(1).float().mean()


class Hinged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = mlp(4, 32, 32, 2), mlp(2, 32, 32, 1)


def own(net: Any) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(part.parameters(), 3e-3, betas=(0.5, 0.9)) for part in (net.maker, net.judge)]


def twice_the_maker(net: Any) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(part.parameters(), 3e-3, betas=(0.5, 0.9)) for part in (net.maker, net.maker)]


def by_turns(script: Any, batch: Batch) -> Tensor:
    net, (of_maker, of_judge) = script.net, script.optimizers()
    made = net.maker(torch.randn(len(batch), 4))
    of_judge.zero_grad()
    script.manual_backward(F.relu(1 - net.judge(batch)).mean() + F.relu(1 + net.judge(made.detach())).mean())
    of_judge.step()
    of_maker.zero_grad()
    loss = -net.judge(net.maker(torch.randn(len(batch), 4))).mean()
    script.manual_backward(loss)
    of_maker.step()
    return loss


def far_off(net: Any, batch: Batch) -> Tensor:
    return distance(net.maker(torch.randn(len(batch), 4)), batch)


def halves(generator: Generator, train: bool) -> Batch:
    return digits(48)(generator, train)


KINDS = [
    Kind(
        "two towers",
        Recipe(Towers, halves, matched, adam(2e-3), not_matched, steps=300),
        (
            Fault(
                "one tower is listed twice, the other is not",
                "parameters in no optimizer",
                "https://github.com/line/open-universe/issues/5",
                m.setting(optimizer=lambda net: torch.optim.Adam([*net.upper.parameters(), net.sharpness], 2e-3)),
            ),
        ),
    ),
    Kind(
        "hinges against each other",
        Recipe(Hinged, ring(), lambda net, b: net.judge(b).mean(), own, far_off, 400, manual=by_turns),
        (
            Fault(
                "the judge's optimizer is given the maker's parameters",
                "parameters in no optimizer",
                "https://github.com/zhaoyuzhi/deepfillv2/pull/3",
                m.setting(optimizer=twice_the_maker),
            ),
        ),
    ),
]
