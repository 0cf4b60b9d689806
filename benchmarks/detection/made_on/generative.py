"""Autoencoders, adversaries, diffusion."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.digits import digits
from ..tasks.synthetic import distance, ring
from .dense import mlp


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


class GAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(4, 32, 32, 2), mlp(2, 32, 32, 1)

    def make(self, size: int) -> Tensor:
        return self.generator(torch.randn(size, 4))


def adversarial(script: Any, batch: Tensor, *, cut: bool = False) -> Tensor:
    net, (critic, generator) = script.net, script.optimizers()
    loss = F.softplus(-net.critic(batch)).mean() + F.softplus(net.critic(net.make(len(batch)).detach())).mean()
    critic.zero_grad()
    script.manual_backward(loss)
    critic.step()
    made = net.make(len(batch))
    deceiving = F.softplus(-net.critic(made.detach() if cut else made)).mean()
    generator.zero_grad()
    script.manual_backward(deceiving)
    generator.step()
    return loss + deceiving.detach()


def two(first: float, second: float) -> Any:
    """Adam for the critic and for the generator."""
    return lambda net: [
        torch.optim.Adam(net.critic.parameters(), first, betas=(0.5, 0.9)),
        torch.optim.Adam(net.generator.parameters(), second, betas=(0.5, 0.9)),
    ]


def cloud(net: nn.Module, batch: Tensor) -> Tensor:
    return distance(net.make(len(batch)), batch)


class Denoiser(nn.Module):
    """Predicts the noise in points, told how much there is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t], 1))


def denoise(net: nn.Module, batch: Tensor) -> Tensor:
    t, noise = torch.rand(len(batch), 1), torch.randn_like(batch)
    keep = torch.cos(t * torch.pi / 2)
    return (net(keep * batch + (1 - keep**2).sqrt() * noise, t) - noise).square().mean()


AUTOENCODER = Recipe(lambda: mlp(64, 48, 16, 48, 64), digits(), reconstruct, adam(3e-3))
VARIATIONAL = Recipe(VAE, digits(), elbo(), adam(2e-3), vae_error)
ADVERSARIAL = Recipe(GAN, ring(), cloud, two(2e-3, 2e-3), cloud, steps=600, manual=adversarial)
DIFFUSION = Recipe(Denoiser, ring(), denoise, adam(2e-3), steps=500)

KINDS = [
    Kind(
        "autoencoder",
        AUTOENCODER,
        (
            Fault(
                "sigmoid output for standardized pixels",
                "output is saturated",
                "https://stackoverflow.com/questions/52441877",
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
    Kind(
        "adversarial networks",
        ADVERSARIAL,
        (
            Fault(
                "critic a thousand times faster",
                "optimizers are out of balance",
                "https://github.com/simontomaskarlsson/GAN-MRI/issues/11",
                m.setting(optimizer=two(5e-2, 5e-5)),
            ),
            Fault(
                "generator's samples stay detached",
                "graph is cut",
                "https://github.com/wangle53/CSA-CDGAN/issues/5",
                m.setting(manual=functools.partial(adversarial, cut=True)),
            ),
        ),
    ),
    Kind(
        "diffusion",
        DIFFUSION,
        (
            Fault(
                "learning rate of 1",
                "rate too high",
                "https://github.com/lucidrains/denoising-diffusion-pytorch/issues/44",
                m.setting(optimizer=adam(1.0)),
            ),
        ),
    ),
]
