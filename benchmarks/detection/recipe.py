"""What a training script chooses, as plain data: a run is made of it, a fault is a change of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

Batch = Any
Model = Callable[[], nn.Module]
Data = Callable[[Generator, bool], Batch]  # one batch: from which generator, and whether it is one to train on
Loss = Callable[[nn.Module, Batch], Tensor]
Metric = Callable[[nn.Module, Batch], Tensor | float]
Optimizers = Callable[[nn.Module], Optimizer | Sequence[Optimizer]]


@dataclass(frozen=True)
class Recipe:
    """One training script.

    Attributes:
        model: builds the network.
        data: draws one batch, to train on or held out.
        loss: what is minimized.
        optimizer: one, or several for a ``manual`` step.
        metric: how good the trained network is, on held-out batches; lower is better. The loss if not given.
        steps: optimizer steps of the run.
        per_epoch: batches in one epoch; they come back in the same order in the next.
        schedule: factor on the learning rate, by step.
        manual: the training step of a script with several optimizers, or with a loop of its own.
        accumulate: batches in one optimizer step.
        clip: ``gradient_clip_val`` of the Trainer.
        precision: of the Trainer.
        held_out: data for the metric where the training data are spoiled.
    """

    model: Model
    data: Data
    loss: Loss
    optimizer: Optimizers
    metric: Metric | None = None
    steps: int = 400
    per_epoch: int = 100
    schedule: Callable[[int], float] | None = None
    manual: Callable[[Any, Batch], Tensor] | None = None
    accumulate: int = 1
    clip: float | None = None
    precision: str = "32-true"
    held_out: Data | None = None

    def worth(self, net: nn.Module, batches: int = 6) -> float:
        """The metric of a network, mean over held-out batches; the random state stays as it was."""
        generator = torch.Generator().manual_seed(10_007)
        training = net.training
        net.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4711)
            data, metric = self.held_out or self.data, self.metric or self.loss
            with torch.set_grad_enabled(self.metric is None):  # some losses differentiate on their way
                values = [float(torch.as_tensor(metric(net, data(generator, False))).detach()) for _ in range(batches)]
        net.train(training)
        return sum(values) / len(values)


def counts_errors(metric: Metric) -> Metric:
    """Marks a metric that is a share of wrong answers: rule sets that ask for accuracy get one minus it."""
    metric.counts_errors = True  # type: ignore[attr-defined]
    return metric


def sgd(lr: float, momentum: float = 0.9, **more: Any) -> Optimizers:
    return lambda net: torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, **more)


def adam(lr: float, **more: Any) -> Optimizers:
    return lambda net: torch.optim.Adam(net.parameters(), lr=lr, **more)


def adamw(lr: float, **more: Any) -> Optimizers:
    return lambda net: torch.optim.AdamW(net.parameters(), lr=lr, **more)
