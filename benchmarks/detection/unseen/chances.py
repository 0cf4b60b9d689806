"""Chances: weights that are distributions, tags in a chain, pictures that are mixed by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Loss, Recipe, adam, adamw, counts_errors
from ..tasks.digits import digits, error_rate
from ..tasks.synthetic import squared


class Drawn(nn.Module):
    """A layer whose weights are normal distributions; what comes out is drawn, in evaluation it is the mean."""

    def __init__(self, n_in: int, n_out: int, rho: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(n_out, n_in) * n_in**-0.5)
        self.rho = nn.Parameter(torch.full((n_out, n_in), rho))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        mean = F.linear(x, self.mean, self.bias)
        if not self.training:
            return mean
        variance = F.linear(x**2, F.softplus(self.rho) ** 2)
        return mean + (variance + 1e-8).sqrt() * torch.randn_like(mean)

    def divergence(self) -> Tensor:
        """From a standard normal distribution."""
        std = F.softplus(self.rho)
        return (-torch.log(std) + (std**2 + self.mean**2) / 2 - 0.5).sum()


class Distributions(nn.Module):
    def __init__(self, rho: float = -4.0) -> None:
        super().__init__()
        self.enter, self.hidden, self.out = Drawn(5, 48, rho), Drawn(48, 48, rho), Drawn(48, 1, rho)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.tanh(self.enter(x)))))

    def divergence(self) -> Tensor:
        return self.enter.divergence() + self.hidden.divergence() + self.out.divergence()


def curved(generator: Generator, train: bool) -> Batch:
    x = torch.randn(64 if train else 256, 5, generator=generator)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3].clamp(-1, 1)
    return x, y + 0.1 * torch.randn(len(x), 1, generator=generator)


def likely_and_near(precision: float = 50.0, weight: float = 1 / 6400) -> Loss:
    """Squared errors, and the divergence of all weights from what they were thought to be."""

    def loss(net: Any, batch: Batch) -> Tensor:
        return precision * squared(net, batch) + weight * net.divergence()

    return loss


class Chain(nn.Module):
    """Scores of tags at each word, and of each tag after each other (CRF)."""

    def __init__(self, *, in_logarithms: bool = True) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(30, 24), nn.Conv1d(24, 32, 3, padding=1)
        self.out = nn.Linear(32, 4)
        self.follows = nn.Parameter(torch.randn(4, 4) * 0.1)
        self.in_logarithms = in_logarithms

    def forward(self, words: Tensor) -> Tensor:
        return self.out(F.relu(self.read(self.embed(words).transpose(1, 2))).transpose(1, 2))

    def log_likelihood(self, words: Tensor, tags: Tensor) -> Tensor:
        score = self(words)
        taken = score.gather(2, tags[..., None])[..., 0].sum(1) + self.follows[tags[:, :-1], tags[:, 1:]].sum(1)
        return taken - self.all_chains(score)

    def all_chains(self, score: Tensor) -> Tensor:
        """Logarithm of the sum over all chains."""
        if self.in_logarithms:
            total = score[:, 0]
            for k in range(1, score.shape[1]):
                total = torch.logsumexp(total[:, :, None] + self.follows, 1) + score[:, k]
            return torch.logsumexp(total, 1)
        total = score[:, 0].exp()
        for k in range(1, score.shape[1]):
            total = (total @ self.follows.exp()) * score[:, k].exp()
        return torch.log(total.sum(1))

    def best(self, words: Tensor) -> Tensor:
        """The likeliest chain of tags (Viterbi)."""
        score = self(words)
        total, back = score[:, 0], []
        for k in range(1, score.shape[1]):
            value, last = (total[:, :, None] + self.follows).max(1)
            total = value + score[:, k]
            back.append(last)
        tags = [total.argmax(1)]
        for last in reversed(back):
            tags.append(last.gather(1, tags[-1][:, None])[:, 0])
        return torch.stack(tags[::-1], 1)


def sentences(generator: Generator, train: bool) -> Batch:
    """Tags that stay or go one on; near half of the words do not tell theirs."""
    num = 24 if train else 96
    tags = torch.zeros(num, 15, dtype=torch.long)
    tags[:, 0] = torch.randint(4, (num,), generator=generator)
    for k in range(1, 15):
        tags[:, k] = (tags[:, k - 1] + (torch.rand(num, generator=generator) < 0.8).long()) % 4
    words = tags * 5 + torch.randint(5, (num, 15), generator=generator)
    vague = torch.rand(num, 15, generator=generator) < 0.45
    return torch.where(vague, torch.randint(20, 30, (num, 15), generator=generator), words), tags


def unlikely(sign: float = -1.0) -> Callable[[Any, Batch], Tensor]:
    return lambda net, batch: sign * (net.log_likelihood(*batch).mean() / 15)


@counts_errors
def mistagged(net: Any, batch: Batch) -> Tensor:
    return (net.best(batch[0]) != batch[1]).float().mean()


class Recomputed(nn.Module):
    """Residual blocks whose activations are computed anew in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 24, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.SiLU()) for _ in range(2)
        )
        self.out = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.training else block(x))
        return self.out(F.avg_pool2d(x, 2).flatten(1))


def mixed_up(net: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of pictures that shine through each other, with both labels (mixup)."""
    x, y = batch
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    other = torch.randperm(len(x))
    out = net(share * x + (1 - share) * x[other])
    return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[other])


KINDS = [
    Kind(
        "weights as distributions",
        Recipe(Distributions, curved, likely_and_near(), adam(5e-3), squared, steps=350),
        (
            Fault(
                "mean squared error plus the whole divergence",
                "too much regularization",
                "https://github.com/google/edward2/issues/474",
                m.setting(loss=likely_and_near(1.0, 1.0)),
                "subtle",
            ),
            Fault(
                "rho begins at 4",
                "weights begin too large",
                "DeepCrime WCI (Humbatova et al. 2021); https://github.com/tensorflow/probability/issues/762",
                m.setting(model=lambda: Distributions(rho=4.0)),
                "subtle",
            ),
        ),
    ),
    Kind(
        "words and their chains",
        Recipe(Chain, sentences, unlikely(), adamw(5e-3), mistagged, steps=150, per_epoch=50),
        (
            Fault(
                "the layer returns the log-likelihood, which is minimized",
                "loss is maximized",
                "https://github.com/kmkurn/pytorch-crf/issues/27",
                m.setting(loss=unlikely(1.0)),
            ),
            Fault(
                "the forward algorithm without logsumexp, scores in tens",
                "a step is not finite",
                "https://github.com/allanj/pytorch_neural_crf/issues/4",
                m.both(
                    m.setting(model=lambda: Chain(in_logarithms=False)),
                    m.weights(lambda name, p: p.mul_(60.0) if name.startswith("out.") else None),
                ),
            ),
        ),
    ),
    Kind(
        "mixed pictures, recomputed layers",
        Recipe(
            Recomputed,
            digits(32, 1, 8, 8),
            mixed_up,
            lambda net: torch.optim.NAdam(net.parameters(), 2e-3),
            error_rate,
            steps=150,
            per_epoch=50,
        ),
    ),
]
