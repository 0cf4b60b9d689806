"""Autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.digits import digits
from ..tasks.models import mlp


def reconstruct(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[0]).square().mean()


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


def elbo(weight: float = 1.0) -> Any:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        made, mean, log_variance = net(batch[0])
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return (made - batch[0]).square().sum(1).mean() / 2 + weight * divergence

    return loss


def vae_error(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[0] - batch[0]).square().mean()


AUTOENCODER = Recipe(lambda: mlp(64, 48, 16, 48, 64), digits(), reconstruct, adam(3e-3))


VARIATIONAL = Recipe(VAE, digits(), elbo(), adam(2e-3), vae_error)


KINDS = [
    Kind(
        "autoencoder",
        AUTOENCODER,
        (
            Fault(
                "sigmoid output for standardized pixels",
                "output is saturated",
                "https://github.com/MorvanZhou/tutorials/issues/33",
                m.setting(model=lambda: mlp(64, 48, 16, 48, 64, last=nn.Sigmoid())),
            ),
            Fault(
                "decoder left out of the optimizer",
                "parameters in no optimizer",
                "https://github.com/facebookresearch/mmf/issues/104",
                m.setting(optimizer=lambda net: torch.optim.Adam(net[:4].parameters(), 3e-3)),
            ),
        ),
    ),
    Kind(
        "variational autoencoder",
        VARIATIONAL,
        (
            Fault(
                "divergence weighted by 100",
                "posterior has collapsed",
                "https://github.com/1Konny/Beta-VAE/issues/4",
                m.setting(loss=elbo(100.0)),
                "subtle",
            ),
            Fault(
                "a penalty with sqrt() of what may be zero",
                "a step is not finite",
                "https://github.com/Li-Chongyi/Zero-DCE_extension/issues/2",
                m.setting(loss=lambda net, b: elbo()(net, b) + net(b[0])[1].relu().sqrt().mean()),
            ),
        ),
    ),
]
