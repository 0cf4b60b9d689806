"""Points in the plane: adversaries, diffusion."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Recipe, adam
from ..tasks.models import mlp
from ..tasks.synthetic import distance, ring


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


ADVERSARIAL = Recipe(GAN, ring(), cloud, two(2e-3, 2e-3), cloud, steps=600, manual=adversarial)


DIFFUSION = Recipe(Denoiser, ring(), denoise, adam(2e-3), steps=500)


KINDS = [
    Kind(
        "adversarial networks",
        ADVERSARIAL,
        (
            Fault(
                "critic a thousand times faster",
                "a critic has won",
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
                "https://github.com/CompVis/latent-diffusion/issues/369",
                m.setting(optimizer=adam(1.0)),
            ),
        ),
    ),
]
