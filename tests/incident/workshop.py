"""Modules that a replay builds by name, and a bad step to save."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradguard.harmless.rng import capture_rng
from lightning_gradguard.incident.bundle import Incident, MicroBatch, digest_gradient
from lightning_gradguard.incident.locate import localise
from lightning_gradguard.measurement.layout import clean_name


class Root(nn.Module):
    """sqrt(|x|): the slope of the root at 0 is infinite, and dropout gives many zeros."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sqrt()


class Net(nn.Module):
    """A plain module with a ``training_step``, dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.25), Root(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.layers(x), y)


class Healthy(Net):
    """The same shapes without the root."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[3] = nn.Tanh()


def loss(module: nn.Module, batch) -> torch.Tensor:
    return F.cross_entropy(module.layers(batch[0]), batch[1])


def loss_with_all(module: nn.Module, batch) -> torch.Tensor:
    return loss(module, batch) * batch[2](1.0)


def not_a_module() -> str:
    return "text"


def raising() -> nn.Module:
    raise OSError("no data folder")


def other_shapes() -> nn.Module:
    net = Net()
    net.layers[0] = nn.Linear(5, 8)
    return net


def make_batch(seed: int = 1):
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(16) % 3


def bad_step(net: Net, batch=None, num_batches: int = 1, **facts) -> Incident:
    """Runs a step of ``num_batches`` that goes bad, and says all about it."""
    batches = [batch or make_batch(seed) for seed in range(1, num_batches + 1)]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    micros = []
    for index, one in enumerate(batches):
        micros.append(MicroBatch(one, index, capture_rng()))
        (net.training_step(one, index) * (1.0 / num_batches)).backward()
    named = [(clean_name(name), parameter.grad) for name, parameter in net.named_parameters()]
    gradients = {name: digest_gradient(grad) for name, grad in named if grad is not None}
    found = localise(net, loss, batches[0], rng=micros[0].rng, buffers=buffers)
    config = {"accumulate_grad_batches": num_batches, "precision": "32-true"}
    return Incident(
        **{
            "step": 412,
            "optimizer": 0,
            "cause": "nan",
            "action": "skip",
            "gradients": gradients,
            "place": "between layers.1 and layers.4",
            "batches": micros,
            "buffers": buffers,
            "config": config,
            "localisation": found,
            **facts,
        }
    )
