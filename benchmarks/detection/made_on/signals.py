"""Sequences in time: long delays, causal convolutions, different lengths, alignment."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors, sgd


class Cells(nn.Module):
    """A recurrent cell in a loop of one's own."""

    def __init__(self, cell: type[nn.RNNCellBase] = nn.GRUCell) -> None:
        super().__init__()
        self.cell, self.head = cell(4, 32), nn.Linear(32, 4)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def delayed(generator: Generator, train: bool) -> Batch:
    """What was shown first is to be named after ten steps of noise."""
    y = torch.randint(4, (32 if train else 128,), generator=generator)
    noise = 0.1 * torch.randn(len(y), 10, 4, generator=generator)
    return torch.cat([F.one_hot(y, 4).float()[:, None], noise], 1), y


def classes(net: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@counts_errors
def wrong(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]).argmax(1) != batch[1]).float().mean()


class Causal(nn.Module):
    """Dilated convolutions that see only what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(n, 24, 3, dilation=2**i) for i, n in enumerate((1, 24, 24)))
        self.head = nn.Conv1d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = F.relu(layer(F.pad(x, (2 * 2**index, 0))))
        return self.head(x)


def waves(generator: Generator, train: bool) -> Batch:
    at = torch.linspace(0, 6, 41) * (1 + torch.rand(32, 1, 1, generator=generator)) + 6 * torch.rand(32, 1, 1)
    wave = torch.sin(at) + 0.5 * torch.sin(2.7 * at)
    return wave[..., :-1], wave[..., 1:]


def next_value(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


class Packed(nn.Module):
    """Sequences of different length, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        packed = pack_padded_sequence(given[0], given[1], batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0])


def lengths(generator: Generator, train: bool) -> Batch:
    """Two marked numbers in a sequence of some length are to be added."""
    x, size = torch.rand(32, 12, generator=generator), torch.randint(6, 13, (32,), generator=generator)
    mark = F.one_hot(torch.randint(3, (32,), generator=generator), 12)
    mark = mark + F.one_hot(3 + torch.randint(3, (32,), generator=generator), 12)
    return (torch.stack([x, mark.float()], 2), size), (x * mark).sum(1, keepdim=True)


class Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(5, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 6, 5, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.net(x), 1).permute(2, 0, 1)


def spoken(generator: Generator, train: bool) -> Batch:
    """Four symbols, each three frames long, in noise."""
    y = torch.randint(1, 6, (16, 4), generator=generator)
    frames = F.one_hot(y - 1, 5).float().repeat_interleave(4, 1)
    frames[:, 3::4] = 0
    return (frames + 0.3 * torch.randn(frames.shape, generator=generator)).transpose(1, 2), y, torch.full((16,), 4)


def aligned(net: nn.Module, batch: Batch) -> Tensor:
    x, y, size = batch
    return F.ctc_loss(net(x), y, torch.full((len(x),), x.shape[2]), size)


def shorter(batch: Batch) -> Batch:
    """A recording that was cut to three frames, too few for its four symbols."""
    return batch[0][..., :3], *batch[1:]


KINDS = [
    Kind(
        "cells in a loop, long delay",
        Recipe(Cells, delayed, classes, adam(1e-2), wrong, steps=300),
        (
            Fault(
                "plain cells with tiny recurrent weights",
                "gradient vanishes over time",
                "https://arxiv.org/abs/1211.5063",
                m.both(
                    m.setting(model=lambda: Cells(nn.RNNCell), optimizer=sgd(0.05)),  # type: ignore[arg-type]
                    m.weights(lambda name, p: p.mul_(0.1) if name.endswith("weight_hh") else None),
                ),
            ),
        ),
    ),
    Kind(
        "causal convolutions",
        Recipe(Causal, waves, next_value, adam(3e-3), steps=300),
        (
            Fault(
                "momentum of 0.999",
                "rate too high",
                "Humbatova et al. 2020, taxonomy: suboptimal hyperparameters",
                m.setting(optimizer=sgd(0.1, momentum=0.999)),
            ),
        ),
    ),
    Kind("packed sequences", Recipe(Packed, lengths, lambda n, b: (n(b[0]) - b[1]).square().mean(), adam(5e-3))),
    Kind(
        "alignment of frames to symbols",
        Recipe(Listener, spoken, aligned, adam(5e-3), steps=300),
        (
            Fault(
                "some recordings are shorter than their text",
                "batches are bad",
                "https://github.com/ypwhs/captcha_break/issues/29",
                m.some_batches(0.05, shorter),
            ),
        ),
    ),
]
