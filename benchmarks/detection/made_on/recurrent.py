"""Recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Recipe, adam
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.text import next_token, text, vocabulary


class Recurrent(nn.Module):
    """A language model over an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary(), 24)
        self.rnn = nn.LSTM(24, 48, batch_first=True)
        self.head = nn.Linear(48, vocabulary())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class Rows(nn.Module):
    """A digit read row by row, classified at its end."""

    def __init__(self, cell: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.rnn = cell(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


LSTM = Recipe(Recurrent, text(), next_token, adam(1e-2), steps=300)


GRU = Recipe(Rows, digits(32, 8, 8), cross_entropy, adam(5e-3), error_rate, steps=300)


KINDS = [
    Kind(
        "LSTM language model",
        LSTM,
        (
            Fault(
                "step() never called",
                "step is never called",
                "https://github.com/ClementPinard/SfmLearner-Pytorch/issues/5",
                m.setting(manual=m.without_step),
            ),
            Fault(
                "negative loss",
                "loss is maximized",
                "Humbatova et al. 2020, taxonomy: wrong loss function calculation",
                lambda r: m.setting(loss=lambda net, b: -next_token(net, b), metric=next_token)(r),
            ),
        ),
    ),
    Kind(
        "GRU over rows",
        GRU,
        (
            Fault(
                "all inputs zero",
                "input is constant",
                "https://github.com/zylo117/Yet-Another-EfficientDet-Pytorch/issues/277",
                m.inputs(torch.zeros_like),
            ),
            Fault(
                "recurrent weights too large",
                "gradient explodes over time",
                "https://arxiv.org/abs/1211.5063",
                m.both(
                    m.setting(model=lambda: Rows(nn.RNN)),
                    m.weights(lambda name, p: p.mul_(40) if "weight_hh" in name else None),
                ),
            ),
        ),
    ),
]
