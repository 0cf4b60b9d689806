"""Things and how they are seen: forces between atoms, rays through a scene, two views of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Data, Loss, Recipe, adam, counts_errors, sgd
from ..tasks.digits import digits
from ..tasks.models import mlp


class Atoms(nn.Module):
    """The energy of five atoms, from the distances between them."""

    def __init__(self, smallest: float = 1e-6) -> None:
        super().__init__()
        self.near, self.mix = nn.Linear(16, 32), nn.Linear(32, 32)
        self.out = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        self.register_buffer("radii", torch.linspace(0.5, 3.5, 16))
        self.smallest = smallest

    def forward(self, place: Tensor) -> Tensor:
        squares = ((place[:, :, None] - place[:, None]) ** 2).sum(-1)
        distance = (squares + self.smallest).sqrt()
        bumps = torch.exp(-(((distance[..., None] - self.radii) * 3) ** 2))
        others = 1 - torch.eye(5)
        h = (F.silu(self.near(bumps)) * others[None, ..., None]).sum(2)
        return self.out(F.silu(self.mix(h))).sum((1, 2))


_AT_REST = torch.tensor([[0.0, 0.0, 0.0], [1.3, 0.0, 0.0], [0.0, 1.3, 0.0], [0.0, 0.0, 1.3], [1.0, 1.0, 1.0]])


def bonds(place: Tensor) -> Tensor:
    """The true energy: a Morse potential between each two atoms."""
    i, j = torch.triu_indices(5, 5, 1)
    distance = (place[:, i] - place[:, j]).norm(dim=-1)
    return ((1 - torch.exp(-1.5 * (distance - 1.4))) ** 2).clamp(max=9.0).sum(1)


def molecules(zero: float = 0.0) -> Data:
    """Places, energies above some ``zero``, and forces; energies to train on are noisy."""

    def draw(generator: Generator, train: bool) -> Batch:
        place = _AT_REST + 0.15 * torch.randn(16 if train else 64, 5, 3, generator=generator)
        energy, force = energy_and_forces(bonds, place, graph=False)
        noise = torch.randn(len(place), generator=generator) * train
        return place, (energy - 3.2).detach() + noise + zero, force

    return draw


def energy_and_forces(
    energy_of: Callable[[Tensor], Tensor], place: Tensor, *, graph: bool = True
) -> tuple[Tensor, Tensor]:
    """Forces are minus the slope of the energy; with ``graph`` a loss can be taken of them."""
    with torch.enable_grad():
        place = place.clone().requires_grad_()
        energy = energy_of(place)
        (slope,) = torch.autograd.grad(energy.sum(), place, create_graph=graph, retain_graph=True)
    return energy, -slope


def explained(graph: bool = True) -> Loss:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        energy, force = energy_and_forces(net, batch[0], graph=graph)
        return 0.05 * F.mse_loss(energy, batch[1]) + F.mse_loss(force, batch[2])

    return loss


def forces_off(net: nn.Module, batch: Batch) -> Tensor:
    """Share of the variance of forces that is left."""
    return F.mse_loss(energy_and_forces(net, batch[0])[1], batch[2]) / batch[2].var()


class Field(nn.Module):
    """Density and brightness at each place of a plane, and what a ray through it sees."""

    def __init__(self, density: float = 0.1) -> None:
        super().__init__()
        self.net = mlp(18, 64, 64, 2)
        self.register_buffer("waves", 2.0 ** torch.arange(4))
        self.net[-1].bias.data[0] = density

    def forward(self, origin: Tensor, direction: Tensor) -> Tensor:
        place = along(origin, direction, 24)
        waves = [wave(place * often) for often in self.waves for wave in (torch.sin, torch.cos)]
        density, brightness = self.net(torch.cat([place, *waves], -1)).unbind(-1)
        depth = F.relu(density) * (2 / 24) * 4
        arrives = torch.exp(-F.pad(depth.cumsum(1)[:, :-1], (1, 0)))
        return (arrives * (1 - torch.exp(-depth)) * torch.sigmoid(brightness)).sum(1)


def along(origin: Tensor, direction: Tensor, num: int) -> Tensor:
    """Places on each ray, from its origin to a distance of two."""
    return origin[:, None] + direction[:, None] * torch.linspace(0, 2, num)[:, None]


def rays(generator: Generator, train: bool) -> Batch:
    """From all around into a scene of three discs, and what is seen there."""
    num = 128 if train else 512
    angle = torch.rand(num, generator=generator) * 6.283
    origin = torch.stack([angle.cos(), angle.sin()], 1)
    aim = (torch.rand(num, 2, generator=generator) - 0.5) * 1.2
    direction = F.normalize(aim - origin, dim=1)
    place = along(origin, direction, 48)
    discs = (((0.3, 0.2), 0.25), ((-0.35, -0.1), 0.2), ((0.05, -0.45), 0.15))
    one, two, three = ((place - torch.tensor(centre)).norm(dim=-1) < radius for centre, radius in discs)
    stopped = (one | two | three).float() * 0.4
    arrives = F.pad(torch.cumprod(1 - stopped, 1)[:, :-1], (1, 0), value=1.0)
    return origin, direction, (arrives * stopped * (0.9 * one + 0.5 * two + 0.25 * three)).sum(1)


def seen(net: nn.Module, batch: Batch) -> Tensor:
    return ((net(batch[0], batch[1]) - batch[2]) ** 2).mean()


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.project = _normed(96, 64, 24), _normed(24, 48, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def _normed(n_in: int, width: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, n_out))


def two_views(generator: Generator, train: bool) -> Batch:
    """A digit with holes beside noise, twice, and which digit it is."""
    x, y = digits(96)(generator, train)
    return _view(x, generator), _view(x, generator), y


def _view(x: Tensor, generator: Generator) -> Tensor:
    kept = x * (torch.rand(x.shape, generator=generator) > 0.2)
    return torch.cat([kept, 2 * torch.randn(len(x), 32, generator=generator)], 1)


def redundant(net: Any, batch: Batch) -> Tensor:
    """How far correlations are from one for a feature of both views, from zero for two features (Barlow twins)."""
    made = [net.project(net(view)) for view in batch[:2]]
    one, other = [(z - z.mean(0, keepdim=True)) / (z.std(0, keepdim=True) + 1e-5) for z in made]
    both = one.T @ other / len(one)
    alone = both.diagonal()
    return ((alone - 1) ** 2).sum() + 0.02 * ((both - torch.diag(alone)) ** 2).sum()


@counts_errors
def nearest_is_another_digit(net: nn.Module, batch: Batch) -> Tensor:
    one, other = (F.normalize(net(view), dim=1) for view in batch[:2])
    nearest = (one @ other.T - 9 * torch.eye(len(one))).argmax(1)
    return (batch[2][nearest] != batch[2]).float().mean()


KINDS = [
    Kind(
        "atoms",
        Recipe(Atoms, molecules(), explained(), adam(5e-3), forces_off, steps=300),
        (
            Fault(
                "create_graph forgotten: forces do not train",
                "graph is cut",
                "https://github.com/choderalab/modelforge/pull/240",
                m.setting(loss=explained(graph=False)),
                "hidden",
            ),
            Fault(
                "distance of an atom to itself: the root of zero",
                "a step is not finite",
                "https://github.com/atomistic-machine-learning/schnetpack/issues/5",
                m.setting(model=lambda: Atoms(smallest=0.0)),
            ),
            Fault(
                "total energies in eV, around minus ten thousand",
                "targets too large",
                "https://github.com/atomistic-machine-learning/schnetpack/issues/642",
                m.setting(data=molecules(-1e4)),
            ),
        ),
    ),
    Kind(
        "rays through a scene",
        Recipe(Field, rays, seen, adam(3e-3), seen, steps=250),
        (
            Fault(
                "density is negative everywhere at the start: black pictures for ever",
                "units are dead",
                "https://github.com/kwea123/nerf_pl/issues/51",
                m.setting(model=lambda: Field(density=-3.0)),
            ),
        ),
    ),
    Kind(
        "redundancy reduced",
        Recipe(Twins, two_views, redundant, adam(3e-3), nearest_is_another_digit, steps=250),
        (
            Fault(
                "LARS' rate of 0.2 with plain SGD and momentum, times ten",
                "rate too high",
                "DeepCrime HLR (Humbatova et al. 2021); Zbontar et al. 2021: LARS' rates",
                m.setting(optimizer=sgd(2.0)),
            ),
            Fault(
                "encoder frozen with requires_grad_(False) for the linear probe, and left so",
                "frozen by mistake",
                "DeepLocalize, Wardat et al. 2021: frozen layers; forum: requires_grad_(False) left on",
                m.frozen("encode."),
            ),
        ),
    ),
]
