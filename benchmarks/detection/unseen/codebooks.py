"""Pictures that are made again: from codes that stand in a book, and through a narrow place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.digits import digits
from ..tasks.models import mlp


class Book(nn.Module):
    """Four codes for a picture, each the nearest of 32; the gradient goes straight through the choice."""

    def __init__(self, straight: bool = True) -> None:
        super().__init__()
        self.encode = mlp(64, 64, 16)
        self.codes = nn.Parameter(torch.randn(32, 4) * 0.5)
        self.decode = mlp(16, 64, 64)
        self.straight = straight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        meant = self.encode(x).view(-1, 4, 4)
        chosen = self.codes[torch.cdist(meant, self.codes[None]).argmin(2)]
        read = meant + (chosen - meant).detach() if self.straight else chosen.detach()
        return self.decode(read.flatten(1)), meant, chosen


def rebuilt_and_committed(net: nn.Module, batch: Batch) -> Tensor:
    made, meant, chosen = net(batch[0])
    follows, commits = ((chosen - meant.detach()) ** 2).mean(), ((meant - chosen.detach()) ** 2).mean()
    return ((made - batch[0]) ** 2).mean() + follows + 0.1 * commits


def without_commitment(net: nn.Module, batch: Batch) -> Tensor:
    made, meant, chosen = net(batch[0])
    return ((made - batch[0]) ** 2).mean() + ((chosen - meant.detach()) ** 2).mean()


def unexplained(net: nn.Module, batch: Batch) -> Tensor:
    """Share of the variance that is left."""
    return ((net(batch[0])[0] - batch[0]) ** 2).mean() / batch[0].var()


class Narrow(nn.Module):
    """A convolution and a layer down to sixteen numbers, and the way back."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(192, 16))
        self.decode = nn.Sequential(
            nn.Linear(16, 192), nn.ELU(), nn.Unflatten(1, (12, 4, 4)), nn.ConvTranspose2d(12, 1, 4, 2, 1)
        )
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.decode(self.encode(x)))


def rebuilt(net: nn.Module, batch: Batch) -> Tensor:
    return ((net(batch[0]) - batch[0]) ** 2).mean()


def rebuilt_in_sum(net: nn.Module, batch: Batch) -> Tensor:
    return ((net(batch[0]) - batch[0]) ** 2).sum()


KINDS = [
    Kind(
        "codes from a book",
        Recipe(Book, digits(48), rebuilt_and_committed, adam(3e-3), unexplained, steps=250),
        (
            Fault(
                "no straight-through: codes reach the decoder detached, no commitment",
                "graph is cut",
                "https://github.com/EdoardoBotta/RQ-VAE-Recommender/issues/24",
                m.setting(model=lambda: Book(straight=False), loss=without_commitment),
            ),
            Fault(
                "Adam at 1e-5",
                "rate too low",
                "DeepCrime, Humbatova et al. 2021: HLR",
                m.rate(1 / 300),
            ),
            Fault(
                "images of 0..255 to be rebuilt",
                "targets too large",
                "https://github.com/keras-team/keras/issues/3642",
                m.inputs(lambda x: x * 60 + 100),
            ),
        ),
    ),
    Kind(
        "pictures rebuilt",
        Recipe(
            Narrow,
            digits(32, 1, 8, 8),
            rebuilt,
            lambda net: torch.optim.Adamax(net.parameters(), 8e-3),
            rebuilt,
            steps=200,
        ),
        (
            Fault(
                "a ReLU at the end, data of both signs",
                "output activation and loss do not fit",
                "Islam; Humbatova et al. 2020: wrong activation in the last layer",
                m.setting(model=lambda: Narrow(nn.ReLU())),
            ),
            Fault(
                "Adamax at 1e-6",
                "rate too low",
                "DeepCrime, Humbatova et al. 2021: HLR",
                m.rate(1e-3 / 8),
            ),
            Fault(
                "sum of squares over the batch and pixels in place of the mean, SGD",
                "loss is badly scaled",
                "https://github.com/ai-safety-foundation/sparse_autoencoder/issues/63",
                m.setting(loss=rebuilt_in_sum, optimizer=sgd(0.05, 0.9)),
            ),
        ),
    ),
]
