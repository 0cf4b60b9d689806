"""Waves and pictures: gated convolutions, tags in both directions, pictures without their noise."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, counts_errors, sgd
from ..tasks.digits import digits


class GatedConvolutions(nn.Module):
    """Dilated convolutions with a gate, and sums of what each of them adds."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(4))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x[:, None])
        told = torch.zeros(())
        for layer in self.dilated:
            values, gate = layer(x).chunk(2, 1)
            h = torch.tanh(values) * torch.sigmoid(gate)
            told = told + h.mean(2)
            x = x + h
        return self.out(told)


def tones(generator: Generator, train: bool) -> Batch:
    """Which of three tones is in the noise."""
    y = torch.randint(3, (32 if train else 128,), generator=generator)
    start = 6.28 * torch.rand(len(y), 1, generator=generator)
    x = torch.sin(start + torch.linspace(0, 6.28, 64) * (3 + 3 * y[:, None]))
    return x + 0.7 * torch.randn(x.shape, generator=generator), y


def named(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@counts_errors
def misnamed(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]).argmax(1) != batch[1]).float().mean()


class Tagger(nn.Module):
    """Reads in both directions, and says of each symbol whether it is the same as the next but one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(6, 12), nn.LSTM(12, 24, bidirectional=True, batch_first=True)
        self.tag = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tag(self.read(self.embed(x))[0]).squeeze(2)


def repeats(generator: Generator, train: bool) -> Batch:
    x = torch.randint(6, (32, 16), generator=generator)
    x[:, 2:] = torch.where(torch.rand(32, 14, generator=generator) < 0.3, x[:, :-2], x[:, 2:])
    return x, F.pad((x[:, :-2] == x[:, 2:]).float(), (0, 2))


def tagged(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


class Clean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.InstanceNorm2d(16, affine=True),
            nn.LeakyReLU(0.1),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(24, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def noisy(generator: Generator, train: bool) -> Batch:
    x, _ = digits(32, 1, 8, 8)(generator, train)
    return x + 0.7 * torch.randn(x.shape, generator=generator), x


def cleaned(net: nn.Module, batch: Batch) -> Tensor:
    return F.l1_loss(net(batch[0]), batch[1])


KINDS = [
    Kind(
        "tones by gated convolutions",
        Recipe(GatedConvolutions, tones, named, adam(5e-3), misnamed, steps=300),
        (
            Fault(
                "divided by the largest sample twice",
                "input too small",
                "https://github.com/pkmital/pycadl/pull/5",
                m.both(m.inputs(lambda x: x / 32768), m.setting(optimizer=sgd(0.05))),
            ),
        ),
    ),
    Kind(
        "tags in both directions",
        Recipe(Tagger, repeats, tagged, adam(1e-2), steps=400),
        (
            Fault(
                "the scheduler stands in the loop over batches",
                "rate decays too early",
                "https://github.com/ivadomed/ivadomed/pull/55",
                m.setting(schedule=lambda step: 0.9**step),
            ),
            Fault(
                "zero_grad was forgotten",
                "gradients are never cleared",
                "https://github.com/IBM/aihwkit/issues/446",
                m.setting(manual=m.without_zero_grad),
            ),
        ),
    ),
    Kind(
        "pictures without their noise",
        Recipe(Clean, noisy, cleaned, adamw(3e-3), steps=300),
        (
            Fault(
                "pictures divided as whole numbers",
                "input is constant",
                "https://github.com/Entropy-xcy/RankFace/issues/2",
                m.inputs(torch.zeros_like),
            ),
        ),
    ),
]
