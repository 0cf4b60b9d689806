"""What is looked up: facts of a graph, words by their company, stored patterns, hidden letters."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Recipe, adam, adamw, counts_errors, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.text import text, vocabulary

_THINGS, _WORDS = 40, 30
_LEAPS = torch.tensor([1, 3, 7, 12])
_COMPANY = (lambda shares: (shares @ shares.T) ** 2 + 0.5)(
    torch.rand(_WORDS, _WORDS, generator=torch.Generator().manual_seed(9))
)


def facts(generator: Generator, train: bool) -> Batch:
    """Who is related how to whom, and somebody who is not."""
    size = (64 if train else 256,)
    who, other = (torch.randint(_THINGS, size, generator=generator) for _ in range(2))
    how = torch.randint(len(_LEAPS), size, generator=generator)
    return who, how, (who + _LEAPS[how]) % _THINGS, other


class Translations(nn.Module):
    """A relation moves a thing to what it is related to; distances by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.thing, self.relation = nn.Embedding(_THINGS, 24), nn.Embedding(4, 24)
        nn.init.xavier_uniform_(self.thing.weight)
        nn.init.xavier_uniform_(self.relation.weight)

    def forward(self, who: Tensor, how: Tensor, whom: Tensor) -> Tensor:
        a, b = (F.normalize(self.thing(x), dim=-1) for x in (who, whom))
        return torch.sqrt((a + self.relation(how) - b).square().sum(-1) + 1e-9)


def apart(net: nn.Module, batch: Batch) -> Tensor:
    who, how, whom, other = batch
    return F.relu(0.5 + net(who, how, whom) - net(who, how, other)).mean()


def rank(net: nn.Module, batch: Batch) -> Tensor:
    """The share of things that are nearer than the right one."""
    who, how, whom, _ = batch
    scores = net(who[:, None], how[:, None], torch.arange(_THINGS)[None])
    return (scores < scores.gather(1, whom[:, None]) - 1e-6).float().mean()


class Products(nn.Module):
    """A relation weighs what two things have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.subject, self.relation, self.object = (nn.Embedding(n, 32) for n in (_THINGS, 4, _THINGS))
        for table in (self.subject, self.relation, self.object):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, who: Tensor, how: Tensor) -> Tensor:
        return (self.subject(who) * self.relation(how)) @ self.object.weight.T


def told(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0], batch[1]), batch[2])


@counts_errors
def mistold(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0], batch[1]).argmax(1) != batch[2]).float().mean()


class Company(nn.Module):
    """Two vectors and two numbers for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.near = nn.Embedding(_WORDS, 8), nn.Embedding(_WORDS, 8)
        self.often, self.often_near = nn.Embedding(_WORDS, 1), nn.Embedding(_WORDS, 1)
        for table in (self.word, self.near, self.often, self.often_near):
            nn.init.uniform_(table.weight, -0.06, 0.06)

    def forward(self, i: Tensor, j: Tensor) -> Tensor:
        return (self.word(i) * self.near(j)).sum(1) + self.often(i)[:, 0] + self.often_near(j)[:, 0]


def words(generator: Generator, train: bool) -> Batch:
    size = (64 if train else 400,)
    return tuple(torch.randint(_WORDS, size, generator=generator) for _ in range(2))


def weighted(net: nn.Module, batch: Batch) -> Tensor:
    often = _COMPANY[batch]
    return ((often / 100).clamp(max=1) ** 0.75 * (net(*batch) - often.log()) ** 2).mean()


class Recalls(nn.Module):
    """Patterns that are drawn to what is stored, twice; what belongs to the nearest is put out."""

    def __init__(self, sharpness: float = 4.0) -> None:
        super().__init__()
        self.query, self.sharpness = nn.Linear(64, 16), sharpness
        self.stored, self.belongs = nn.Parameter(0.25 * torch.randn(40, 16)), nn.Parameter(0.1 * torch.randn(40, 10))

    def forward(self, x: Tensor) -> Tensor:
        z = self.query(x)
        for _ in range(2):
            z = torch.softmax(self.sharpness * z @ self.stored.T / 4, -1) @ self.stored + 0.5 * z
        return 10 * torch.softmax(self.sharpness * z @ self.stored.T / 4, -1) @ self.belongs


class Hidden(nn.Module):
    """Guesses hidden letters from those on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary() + 1, 32)
        self.place = nn.Parameter(0.02 * torch.randn(16, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True)
        self.norm, self.bias = nn.LayerNorm(32), nn.Parameter(torch.zeros(vocabulary()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.block(self.embed(x) + self.place))
        return h @ self.embed.weight[:-1].T + self.bias


def hidden(share: float = 0.2) -> Data:
    def draw(generator: Generator, train: bool) -> Batch:
        x = text(16, 16)(generator, train)[0]
        gone = torch.rand(x.shape, generator=generator) < share
        return torch.where(gone, vocabulary(), x), torch.where(gone, x, -100)

    return draw


def guessed(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())


KINDS = [
    Kind(
        "facts as translations",
        Recipe(Translations, facts, apart, adam(2e-2), rank, steps=250),
        (
            Fault("a rate of 30", "rate too high", "https://github.com/uma-pi1/kge/issues/240", m.rate(1500.0)),
            Fault(
                "the table of things is frozen",
                "frozen by mistake",
                "https://github.com/pykeen/pykeen/issues/571",
                m.frozen("thing."),
            ),
        ),
    ),
    Kind(
        "facts as products",
        Recipe(Products, facts, told, adam(2e-2), mistold, steps=250),
        (
            Fault(
                "SGD at 0.001",
                "rate too low",
                "https://github.com/thunlp/OpenKE/issues/133",
                m.setting(optimizer=sgd(1e-3, 0.0)),
            ),
        ),
    ),
    Kind(
        "words by their company",
        Recipe(Company, words, weighted, lambda net: torch.optim.Adagrad(net.parameters(), 0.1), steps=250),
        (
            Fault(
                "SGD at 30",
                "rate too high",
                "https://github.com/wuxiyu/transE/issues/15",
                m.setting(optimizer=sgd(30.0)),
            ),
        ),
    ),
    Kind(
        "patterns recalled",
        Recipe(Recalls, digits(32), cross_entropy, adam(1e-2), error_rate, steps=200),
        (
            Fault(
                "an inverse temperature of 4000",
                "attention is saturated",
                "Ramsauer et al. 2020",
                m.setting(model=lambda: Recalls(4000.0)),
            ),
        ),
    ),
    Kind(
        "hidden letters",
        Recipe(Hidden, hidden(), guessed, adamw(5e-3), guessed, steps=200),
        (
            Fault(
                "nothing is hidden in most batches",
                "batches are bad",
                "https://github.com/huggingface/transformers/issues/16711",
                m.both(m.setting(held_out=hidden()), m.setting(data=hidden(0.0004))),
            ),
        ),
    ),
]
