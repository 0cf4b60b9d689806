"""The data: handwritten digits and English text that come with scikit-learn and Python."""

from __future__ import annotations

import functools
import pydoc_data.topics
from collections.abc import Callable, Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from .models import CNN, GAN, MLP, Bag, GaussianRegressor, LowRank, Recurrent, Transformer
from .setup import Setup

CROSS_ENTROPY = nn.functional.cross_entropy
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16.0
    return (images - images.mean()) / images.std(), torch.tensor(bunch.target)


@functools.cache
def text() -> tuple[Tensor, int]:
    raw = " ".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))[:200_000]
    symbols = sorted(set(raw))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    return torch.tensor([index[c] for c in raw]), len(symbols)


def is_text(setup: Setup) -> bool:
    return setup.arch in ("lstm", "transformer") or setup.extra in ("sparse-embedding", "embedding", "text")


def batches(setup: Setup, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random batches."""
    length = 24
    while True:
        if is_text(setup):
            tokens, _ = text()
            start = torch.randint(len(tokens) - length - 1, (setup.batch_size,), generator=generator)
            window = tokens[start[:, None] + torch.arange(length + 1)]
            yield window[:, :-1], window[:, 1:]
        else:
            images, labels = digits()
            chosen = torch.randint(len(images), (setup.batch_size,), generator=generator)
            x, y = images[chosen] * setup.input_scale, labels[chosen]
            if setup.extra == "label-noise":
                noisy = torch.rand(len(y), generator=generator) < 0.4
                y = torch.where(noisy, torch.randint(10, y.shape, generator=generator), y)
            yield x, y


def build(setup: Setup) -> nn.Module:
    """The model of a set-up."""
    arch, width = setup.arch, setup.width
    if arch == "mlp":
        net: nn.Module = MLP(setup, [64] + [width] * setup.depth + [10])
        if setup.extra == "low-rank":
            for block in net.blocks:  # type: ignore[union-attr]
                block[0] = LowRank(block[0])
        return net
    if arch in ("cnn", "rescnn"):
        return CNN(setup)
    if arch in ("lstm", "gru", "rnn"):
        return Recurrent(setup, text()[1] if is_text(setup) else None)
    if arch == "transformer":
        return Transformer(setup, text()[1])
    if arch == "gan":
        return GAN(setup)
    if arch == "autoencoder":
        last = nn.Sigmoid() if setup.extra == "sigmoid-output" else None
        return MLP(setup, [64, width, width, width, 8, width, width, width, 64], last)
    if setup.extra in ("sparse-embedding", "embedding"):
        return Bag(text()[1], sparse=setup.extra == "sparse-embedding")
    if setup.extra == "density":
        return GaussianRegressor(setup)
    if setup.extra == "linear":
        return nn.Sequential(nn.Linear(64, 10))
    if setup.extra == "tiny":
        return nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    raise ValueError(f"no model for {setup}")


def loss_of(setup: Setup) -> Loss:
    """What is minimized."""
    if setup.arch == "autoencoder":
        if setup.extra == "sigmoid-output":
            return lambda net, x, y: (net(x) - torch.sigmoid(x / setup.input_scale)).square().mean()
        return lambda net, x, y: (net(x) - x).square().mean()
    if setup.extra == "density":
        return _density
    if setup.extra in ("sparse-embedding", "embedding"):
        return lambda net, x, y: CROSS_ENTROPY(net(x), y[:, -1])
    if is_text(setup):
        return lambda net, x, y: CROSS_ENTROPY(net(x).flatten(0, 1), y.flatten())
    if setup.extra == "sparse-activity":
        return _sparse
    return lambda net, x, y: CROSS_ENTROPY(net(x), y)


def _density(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = net(x).chunk(2, dim=1)
    log_variance = log_variance.clamp(min=-6)
    return (log_variance + (x[:, 32:] - mean).square() / log_variance.exp()).mean() / 2


def _sparse(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    hidden, penalty = x, x.new_zeros(())
    for block in net.blocks:  # type: ignore[union-attr]
        hidden = block(hidden)
        penalty = penalty + hidden.abs().mean()
    return CROSS_ENTROPY(net.head(hidden), y) + 0.02 * penalty  # type: ignore[operator]


def accuracy_of(setup: Setup, net: nn.Module, x: Tensor, y: Tensor) -> float | None:
    """Share of right answers on a batch, where the task has such a thing; for rule sets that ask for it."""
    if setup.arch in ("autoencoder", "gan") or setup.extra == "density":
        return None
    training = net.training
    net.eval()
    with torch.no_grad():
        answer = net(x)
    net.train(training)
    if setup.extra in ("sparse-embedding", "embedding"):
        y = y[:, -1]
    return float((answer.float().argmax(-1) == y).float().mean())
