"""Densities: critics with a penalty, flows, learnt variances."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam
from ..tasks.models import mlp
from ..tasks.synthetic import distance, ring


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(4, 32, 32, 2), mlp(2, 48, 48, 1)


def penalized(script: Any, batch: Tensor, *, weight: float = 1.0, rounds: int = 2) -> Tensor:
    """Wasserstein, with a penalty on the critic's slope between real and made points."""
    net, (critic, generator) = script.net, script.optimizers()
    loss = torch.zeros(())
    for _ in range(rounds):
        made = net.generator(torch.randn(len(batch), 4)).detach()
        between = torch.lerp(made, batch, torch.rand(len(batch), 1)).requires_grad_()
        slope = torch.autograd.grad(net.critic(between).sum(), between, create_graph=True)[0].norm(dim=1)
        loss = net.critic(made).mean() - net.critic(batch).mean() + weight * (slope - 1).square().mean()
        critic.zero_grad()
        script.manual_backward(loss)
        critic.step()
    deceiving = -net.critic(net.generator(torch.randn(len(batch), 4))).mean()
    generator.zero_grad()
    script.manual_backward(deceiving)
    generator.step()
    return loss


def critics(rate: float = 2e-3) -> Any:
    return lambda net: [
        torch.optim.Adam(part.parameters(), rate, betas=(0.0, 0.9)) for part in (net.critic, net.generator)
    ]


def made_points(net: nn.Module, batch: Tensor) -> Tensor:
    return distance(net.generator(torch.randn(len(batch), 4)), batch)


class Coupling(nn.Module):
    """Four couplings, each of which moves one coordinate by what the other says."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(1, 32, 32, 2) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grown = x.new_zeros(len(x))
        for index, net in enumerate(self.nets):
            kept, moved = (x[:, :1], x[:, 1:]) if index % 2 else (x[:, 1:], x[:, :1])
            scale, shift = net(kept).chunk(2, 1)
            scale = 2 * torch.tanh(scale)
            moved = moved * scale.exp() + shift
            grown = grown + scale.squeeze(1)
            x = torch.cat([kept, moved] if index % 2 else [moved, kept], 1)
        return x, grown


def likelihood(sign: float = 1.0) -> Any:
    def loss(net: nn.Module, batch: Tensor) -> Tensor:
        z, grown = net(batch)
        return (z.square().sum(1) / 2 - sign * grown).mean()

    return loss


def noisy_curve(generator: Generator, train: bool) -> Batch:
    x = torch.rand(48 if train else 256, 1, generator=generator) * 4 - 2
    return x, torch.sin(2 * x) + 0.02 * (1 + x.abs()) * torch.randn(x.shape, generator=generator)


def gaussian(net: nn.Module, batch: Batch) -> Tensor:
    """Falls below zero once the variance is small, as it should."""
    mean, raw = net(batch[0]).chunk(2, 1)
    return F.gaussian_nll_loss(mean, batch[1], F.softplus(raw) + 1e-4)


def unguarded(net: nn.Module, batch: Batch) -> Tensor:
    """The variance is what comes out of the network, whatever its sign."""
    mean, variance = net(batch[0]).chunk(2, 1)
    return (variance.log() + (batch[1] - mean).square() / variance).mean() / 2


def curve_error(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[:, :1] - batch[1]).square().mean()


KINDS = [
    Kind(
        "critic with gradient penalty",
        Recipe(Critic, ring(), made_points, critics(), made_points, steps=300, manual=penalized),
        (
            Fault(
                "no penalty",
                "loss has no floor",
                "https://github.com/LeeDoYup/DeblurGAN-tf/issues/8",
                m.setting(manual=functools.partial(penalized, weight=0.0)),
            ),
        ),
    ),
    Kind(
        "flow by couplings",
        Recipe(Coupling, ring(), likelihood(), adam(2e-3)),
        (
            Fault(
                "sign of the log-determinant",
                "loss has no floor",
                "https://github.com/VincentStimper/normalizing-flows/issues/27",
                m.setting(loss=likelihood(-1.0), metric=likelihood()),
                "subtle",
            ),
        ),
    ),
    Kind(
        "learnt variance",
        Recipe(lambda: mlp(1, 32, 32, 2), noisy_curve, gaussian, adam(5e-3), curve_error, steps=500),
        (
            Fault(
                "variance without softplus",
                "a step is not finite",
                "https://github.com/OptiMaL-PSE-Lab/DeepDock/issues/15",
                m.setting(loss=unguarded),
            ),
        ),
    ),
]
