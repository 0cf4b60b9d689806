"""One small training problem, and its twin in plain PyTorch: what every mode must agree with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradguard import ClipPolicy, GradientPipeline

NUM_BATCHES = 6
BATCH_SIZE = 8


class Net(nn.Module):
    """Layers of several shapes; the head has one row, so that a process may hold none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def make_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net()


def examples(index: int) -> tuple[Tensor, Tensor]:
    """The batch of one step: the later, the larger its gradients."""
    inputs = torch.randn(BATCH_SIZE, 6, generator=torch.Generator().manual_seed(100 + index), dtype=torch.float32)
    return inputs, (1.0 + index) * inputs.sum(1, keepdim=True)


def batches() -> DataLoader:
    """Numbers only: a module makes its batch from the number, so that a resumed run sees what it would have seen."""
    return DataLoader(list(range(NUM_BATCHES)), batch_size=None)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01)


class Training:
    """What a module of either Lightning package does with the net; the loss is NaN at the batches in ``bad``.

    Args:
        net: what to train; the usual one if not given.
        bad: batches with a NaN loss.
        share: this process's number among those that split each batch, and how many these are.
        bad_share: which of them sees the NaN; ``None``: all.
        optimizer: makes the optimizer from the parameters.
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        bad: Collection[int] = (),
        share: tuple[int, int] = (0, 1),
        bad_share: int | None = None,
        optimizer: Callable[[Any], Any] = sgd,
    ) -> None:
        super().__init__()
        self.net = make_net() if net is None else net
        self.bad, self.share, self.bad_share = set(bad), share, bad_share
        self.make_optimizer = optimizer

    def loss(self, index: int) -> Tensor:
        number, of = self.share
        inputs, targets = (part.chunk(of)[number] for part in examples(index))
        outputs = self.net(inputs.to(next(self.net.parameters()).dtype))
        loss = (outputs - targets).square().mean()
        return loss * float("nan") if index in self.bad and self.bad_share in (None, number) else loss

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        return self.loss(batch_idx)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Problem(Training, pl.LightningModule):
    """The training as a LightningModule."""


class ManualProblem(Problem):
    """The same under manual optimization."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: int, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch_idx))
        optimizer.step()


Clip = Callable[[list[nn.Parameter]], Any]


class Twin:
    """The same training as a plain loop over whole batches, in float32: weights and raw norms to compare with.

    Args:
        clip: what to do with the gradients, by torch's own functions.
        policy: one of our policies instead, over whole tensors.
        bad: batches that are dropped, with the step that they are part of.
        accumulate: batches a step.
    """

    def __init__(
        self,
        clip: Clip | None = None,
        bad: Collection[int] = (),
        accumulate: int = 1,
        policy: ClipPolicy | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] = sgd,
    ) -> None:
        net = make_net()
        stepping = optimizer(net.parameters())
        pipeline = GradientPipeline(net, stepping, clip=policy)
        self.layer_norms: list[dict[str, float]] = []
        self.totals: list[float] = []
        self.first_of: list[int] = []  # of each step its first measurement; LBFGS calls its closure several times

        def evaluate(window: range) -> Tensor:
            stepping.zero_grad()
            for index in window:
                inputs, targets = examples(index)
                loss = (net(inputs) - targets).square().mean() / accumulate
                loss.backward()
            self._note_norms(net)
            if clip is not None:
                clip(list(net.parameters()))
            if policy is not None:
                pipeline.before_step()
            return loss

        for start in range(0, NUM_BATCHES, accumulate):
            window = range(start, min(start + accumulate, NUM_BATCHES))
            if not set(window) & set(bad):
                self.first_of.append(len(self.totals))
                stepping.step(lambda: evaluate(window))  # noqa: B023  # called at once
        self.weights = whole(net)

    def _note_norms(self, net: nn.Module) -> None:
        layers: dict[str, float] = {}
        for name, parameter in net.named_parameters():
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0.0) + float(parameter.grad.double().square().sum())
        self.layer_norms.append({layer: square**0.5 for layer, square in layers.items()})
        self.totals.append(sum(layers.values()) ** 0.5)


def whole(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, by the names that the plain net has."""
    return {name.replace("_orig_mod.", ""): p.detach().clone() for name, p in net.named_parameters()}


def largest_deviation(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights, relative to the largest weight of each tensor."""
    assert set(found) == set(expected), f"{sorted(found)} against {sorted(expected)}"
    return max(
        float((found[name].double() - value.double()).abs().max() / value.double().abs().max())
        for name, value in expected.items()
    )
