"""Dense networks on tables."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.models import mlp
from ..tasks.synthetic import labelled_table, squared, table


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


TABLE = Recipe(lambda: mlp(8, 32, 32, 1), table(), squared, adam(5e-3), relative_error, steps=600)


BINARY = Recipe(lambda: mlp(8, 32, 32, 1), labelled_table(), binary, adam(5e-3), binary_error, steps=600)


def absolute(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0]) - batch[1]).abs().mean()


KINDS = [
    Kind(
        "absolute errors by hand",
        replace(TABLE, loss=absolute),
        (
            Fault(
                "a thirtieth of the rate",
                "rate too low",
                "https://github.com/arabian9ts/VGG16/issues/7",
                m.rate(1 / 30),
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
                "https://github.com/tensorflow/ranking/issues/87",
                m.inputs(lambda x: x * torch.tensor([1e3, 1e-3, 1.0, 1e2, 1.0, 1e-2, 1e3, 1.0])),
            ),
            Fault(
                "maximize=True",
                "loss is maximized",
                "https://github.com/ikostrikov/pytorch-a3c/issues/30",
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
                "https://github.com/lopuhin/kaggle-imet-2019/issues/3",
                m.setting(model=lambda: mlp(8, 32, 32, 1, last=nn.Sigmoid()), metric=probability_error),
                "subtle",
            ),
            Fault(
                "ReLU after the last layer",
                "output activation and loss do not fit",
                "https://github.com/hunkim/PyTorchZeroToAll/pull/4",
                m.setting(model=lambda: mlp(8, 32, 32, 1, last=nn.ReLU())),
            ),
        ),
    ),
]
