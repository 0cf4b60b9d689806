"""Latents: quantized codes, counts of genes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.digits import digits
from ..tasks.models import mlp


class Codes(nn.Module):
    """An autoencoder whose middle is one of 32 codes in each of four places."""

    def __init__(self, straight_through: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 48, 16), mlp(16, 48, 64)
        self.codes = nn.Embedding(32, 4)
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(-1, 4)
        nearest = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
        commitment = (z - nearest.detach()).square().mean() + (nearest - z.detach()).square().mean()
        passed = z + (nearest - z).detach() if self.straight_through else nearest
        return self.decoder(passed.view(-1, 16)), commitment * float(self.straight_through)


def coded(net: nn.Module, batch: Batch) -> Tensor:
    made, commitment = net(batch[0])
    return (made - batch[0]).square().mean() + commitment


def coded_error(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[0] - batch[0]).square().mean()


class Genes(nn.Module):
    """Counts by a negative binomial over a latent; one layer is there and never used."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.spare = mlp(20, 32, 8), mlp(4, 32, 20), nn.Linear(4, 4)
        self.dispersion = nn.Parameter(torch.zeros(20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(torch.log1p(x)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return F.softplus(self.decoder(z)) + 1e-4, mean, log_variance


def cells(generator: Generator, train: bool) -> Tensor:
    kind = torch.randint(3, (48,), generator=generator)
    rates = 1 + 20 * torch.rand(3, 20, generator=torch.Generator().manual_seed(3)) ** 3
    return torch.poisson(rates[kind], generator=generator)


def counted(net: Any, x: Tensor) -> Tensor:
    rate, mean, log_variance = net(x)
    size = net.dispersion.exp()
    chance = torch.distributions.NegativeBinomial(size, logits=rate.log() - size.log()).log_prob(x).sum(1)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
    return (divergence - chance).mean()


KINDS = [
    Kind(
        "quantized autoencoder",
        Recipe(Codes, digits(), coded, adam(3e-3), coded_error),
        (
            Fault(
                "no straight-through gradient",
                "graph is cut",
                "https://github.com/Biohub/esm/issues/92",
                m.setting(model=functools.partial(Codes, straight_through=False)),
            ),
        ),
    ),
    Kind("counts of genes, an unused layer", Recipe(Genes, cells, counted, adam(5e-3))),
]
