"""Dense networks: digits and tables."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.synthetic import labelled_table, squared, table

KARPATHY = "https://twitter.com/karpathy/status/1013244313327681536"
COPY = "https://github.com/pytorch/pytorch/issues/7844"


def mlp(*sizes: int, last: nn.Module | None = None) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1], *([last] if last else []))


class Functional(nn.Module):
    """Activations applied as functions, as most code has them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 48)])
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


@counts_errors
def binary_error(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return ((net(x) > 0).float() != y).float().mean()


@counts_errors
def probability_error(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return ((net(x) > 0.5).float() != y).float().mean()


def binary(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


def relative_error(net: nn.Module, batch: Batch) -> Tensor:
    """Squared error over the variance of the targets."""
    x, y = batch
    return (net(x) - y).square().mean() / y.var()


def broadcast_error(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1].squeeze(1)).square().mean()


PLAIN = Recipe(lambda: mlp(64, 64, 64, 10), digits(), cross_entropy, sgd(0.05), error_rate)
FUNCTIONS = Recipe(Functional, digits(), cross_entropy, adam(2e-3), error_rate)
TABLE = Recipe(lambda: mlp(8, 32, 32, 1), table(), squared, adam(5e-3), relative_error, steps=600)
BINARY = Recipe(lambda: mlp(8, 32, 32, 1), labelled_table(), binary, adam(5e-3), binary_error, steps=600)
LOGISTIC = Recipe(lambda: nn.Linear(64, 10), digits(), cross_entropy, sgd(0.1), error_rate)

KINDS = [
    Kind(
        "dense digits",
        PLAIN,
        (
            Fault("optimizer holds a copy", "optimizer holds other parameters", COPY, m.optimizer_of_a_copy),
            Fault("no zero_grad", "gradients are never cleared", KARPATHY, m.setting(manual=m.without_zero_grad)),
            Fault(
                "softmax before cross entropy",
                "output activation and loss do not fit",
                "https://github.com/NaJaeMin92/pytorch-DANN/issues/7",
                m.setting(model=lambda: mlp(64, 64, 64, 10, last=nn.Softmax(1))),
            ),
            Fault(
                "inputs of 1e-4",
                "input too small",
                "Humbatova et al. 2020, taxonomy: missing preprocessing",
                m.inputs(lambda x: x * 1e-4),
            ),
            Fault(
                "every unit begins the same",
                "units are identical",
                "https://stats.stackexchange.com/questions/45087",
                m.weights(lambda name, p: p.fill_(0.05)),
            ),
        ),
    ),
    Kind(
        "dense digits, functional",
        FUNCTIONS,
        (
            Fault(
                "learning rate of 3",
                "rate too high",
                "AUTOTRAINER, Zhang et al. 2021: exploding gradient",
                m.setting(optimizer=adam(3.0)),
            ),
            Fault(
                "dead ReLUs by bias",
                "units are dead",
                "AUTOTRAINER, Zhang et al. 2021: dying ReLU",
                m.weights(lambda name, p: p.fill_(-20.0) if name == "layers.1.bias" else None),
            ),
            Fault(
                "weight decay of 60",
                "weight decay rules",
                "https://github.com/BVLC/caffe/issues/1396",
                m.setting(optimizer=lambda net: torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=60.0)),
            ),
            Fault(
                "labels shuffled against images",
                "labels are wrong",
                "http://theorangeduck.com/page/neural-network-not-working",
                m.training_batches(lambda batch: (batch[0], batch[1].roll(1))),
                "hidden",
            ),
        ),
    ),
    Kind(
        "regression of a table",
        TABLE,
        (
            Fault(
                "targets of 1e5",
                "targets too large",
                "http://theorangeduck.com/page/neural-network-not-working",
                m.batches(lambda batch: (batch[0], batch[1] * 1e5)),
            ),
            Fault(
                "features of very different scale",
                "inputs differ in scale",
                "https://stackoverflow.com/questions/4674623",
                m.inputs(lambda x: x * torch.tensor([1e3, 1e-3, 1.0, 1e2, 1.0, 1e-2, 1e3, 1.0])),
            ),
            Fault(
                "maximize=True",
                "loss is maximized",
                "https://github.com/pytorch/pytorch/issues/68052",
                m.setting(optimizer=adam(5e-3, maximize=True)),
            ),
            Fault(
                "target of shape (N,) against output (N, 1)",
                "loss broadcasts",
                "https://github.com/deepset-ai/FARM/issues/229",
                lambda r: replace(r, loss=broadcast_error),
                "hidden",
            ),
        ),
    ),
    Kind(
        "binary classification",
        BINARY,
        (
            Fault(
                "sigmoid before BCEWithLogits",
                "output activation and loss do not fit",
                "https://discuss.pytorch.org/t/bceloss-vs-bcewithlogitsloss/33586",
                m.setting(model=lambda: mlp(8, 32, 32, 1, last=nn.Sigmoid()), metric=probability_error),
                "subtle",
            ),
            Fault(
                "ReLU after the last layer",
                "output activation and loss do not fit",
                "https://stackoverflow.com/questions/55328966",
                m.setting(model=lambda: mlp(8, 32, 32, 1, last=nn.ReLU())),
            ),
        ),
    ),
    Kind(
        "logistic regression",
        LOGISTIC,
        (
            Fault(
                "learning rate of 1e-6",
                "rate too low",
                "AUTOTRAINER, Zhang et al. 2021: slow convergence",
                m.setting(optimizer=sgd(1e-6)),
            ),
        ),
    ),
]  # fmt: skip
