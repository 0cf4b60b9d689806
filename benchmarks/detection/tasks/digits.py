"""Handwritten digits, 8 x 8, which come with scikit-learn: 1,500 to train on, the others held out."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from ..recipe import Batch, Data, counts_errors

NUM_TRAIN = 1500


@functools.cache
def _all() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16.0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(bunch.target)[order]
    return (images - images.mean()) / images.std(), labels


def digits(batch_size: int = 32, *shape: int) -> Data:
    """Batches of standardized images in the shape asked for (64 pixels if none is), and their labels."""

    def draw(generator: Generator, train: bool) -> Batch:
        images, labels = _all()
        low, high = (0, NUM_TRAIN) if train else (NUM_TRAIN, len(labels))
        chosen = torch.randint(low, high, (batch_size if train else 64,), generator=generator)
        return images[chosen].view(-1, *(shape or (64,))), labels[chosen]

    return draw


def cross_entropy(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y)


@counts_errors
def error_rate(net: nn.Module, batch: Batch) -> Tensor:
    """Share of wrong answers, whatever came out of the network."""
    x, y = batch
    return (net(x).argmax(-1) != y).float().mean()
