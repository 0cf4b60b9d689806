"""Nets that are told what to do: by a condition, by the return that is wanted, by a second stream."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.digits import digits
from ..tasks.models import mlp


class Conditioned(nn.Module):
    """Features that a question scales and shifts; the question asks for one of two properties of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.more, self.say = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 2)
        self.ask = nn.Embedding(2, 96)
        nn.init.normal_(self.ask.weight, std=0.02)

    def forward(self, x: Tensor, question: Tensor) -> Tensor:
        scale, shift = self.ask(question).chunk(2, 1)
        h = torch.relu(self.more(torch.relu(self.see(x))))
        return self.say(torch.relu((1 + scale) * h + shift))


def questions(generator: Generator, train: bool) -> Batch:
    x, y = digits(48)(generator, train)
    question = torch.randint(2, y.shape, generator=generator)
    return x, question, torch.where(question == 0, y % 2, (y > 4).long())


def answered(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0], batch[1]), batch[2])


@counts_errors
def wrong(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0], batch[1]).argmax(-1) != batch[2]).float().mean()


class ByReturn(nn.Module):
    """The next of a line of actions, given states and the return that is still wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(8, 24))
        self.enter = nn.Linear(4, 24)
        self.block = nn.TransformerEncoderLayer(24, 2, 48, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.act = nn.Linear(24, 3)

    def forward(self, states: Tensor, wanted: Tensor) -> Tensor:
        x = self.enter(torch.cat([states, wanted], 2)) + self.place
        mask = torch.full((8, 8), -torch.inf).triu(1)
        return self.act(self.block(x, src_mask=mask, is_causal=True))


def played(generator: Generator, train: bool) -> Batch:
    """Who wants much does what the state says, who wants little the opposite."""
    states = torch.randn(24 if train else 96, 8, 3, generator=generator)
    wanted = torch.randn(len(states), 8, 1, generator=generator)
    return states, wanted, torch.where(wanted[..., 0] > 0, states.argmax(2), states.argmin(2))


def imitated(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0], batch[1]).flatten(0, 1), batch[2].flatten())


def wrapped_anew(net: nn.Module, batch: Batch) -> Tensor:
    """A loss that is made a leaf, since backward() asked for one that requires a gradient."""
    return imitated(net, batch).detach().requires_grad_()


class TwoStreams(nn.Module):
    """Two views of a thing, each through a net of its own, and one verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns, self.verdict = mlp(32, 32, 16), mlp(32, 32, 16), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x.chunk(2, 1)
        return self.verdict(torch.tanh(torch.cat([self.rows(upper), self.columns(lower)], 1)))


def judged(net: nn.Module, batch: Batch) -> Tensor:
    return F.nll_loss(F.log_softmax(net(batch[0]), 1), batch[1])


@counts_errors
def misjudged(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]).argmax(1) != batch[1]).float().mean()


def used_up(net: nn.Module) -> torch.optim.Optimizer:
    """The parameters of one stream are an iterator that a count has already gone through."""
    one, other = net.rows.parameters(), [*net.columns.parameters(), *net.verdict.parameters()]
    sum(p.numel() for p in one)
    return torch.optim.Adam([{"params": list(one), "lr": 1e-3}, {"params": other}], 2e-3)


KINDS = [
    Kind(
        "questions that scale features",
        Recipe(Conditioned, questions, answered, adam(4e-3), wrong, steps=300),
        (
            Fault(
                "pictures from 0 to 255 in the place of standardized ones",
                "input too large",
                "Humbatova et al. 2020",
                m.inputs(lambda x: 100 + 80 * x),
            ),
        ),
    ),
    Kind(
        "actions by the return that is wanted",
        Recipe(ByReturn, played, imitated, adam(4e-3), wrong, steps=200),
        (
            Fault(
                "the loss is wrapped anew, and requires a gradient",
                "graph is cut",
                "https://github.com/speechbrain/speechbrain/issues/735",
                m.setting(loss=wrapped_anew, metric=wrong),
            ),
            Fault(
                "the schedule is over after one part in eight, as if there were eight devices",
                "rate decays too early",
                "https://github.com/axolotl-ai-cloud/axolotl/issues/157",
                m.setting(schedule=lambda step: max(0.0, 1 - step / 25)),
            ),
        ),
    ),
    Kind(
        "two streams, one verdict",
        Recipe(TwoStreams, digits(32), judged, adam(2e-3), misjudged, steps=250),
        (
            Fault(
                "the iterator of one stream's parameters was used up",
                "parameters in no optimizer",
                "https://github.com/SSL92/hyperIQA/issues/32",
                m.setting(optimizer=used_up),
            ),
        ),
    ),
]
