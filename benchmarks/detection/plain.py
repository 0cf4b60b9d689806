"""The same run without a Trainer, which costs four times as much as such small networks: for its metric alone."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lightning_gradguard import GradientPipeline
from lightning_gradguard.guard.guard import NonFiniteGradientError

from .mistakes import listed
from .recipe import Recipe


class Guarded:
    """An optimizer whose steps are dropped where their gradients are not finite, as with ``GradGuard()``."""

    def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        mine, held = set(net.parameters()), {p for group in optimizer.param_groups for p in group["params"]}
        # An optimizer that holds other parameters gets no gradient: there is nothing to drop.
        self._pipeline = None if mine.isdisjoint(held) else _dropping(net, optimizer)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, clip: float | None = None) -> None:
        if self._pipeline is not None:
            self._pipeline.before_step()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], clip)
        self.optimizer.step()


def _dropping(net: nn.Module, optimizer: Optimizer) -> GradientPipeline:
    return GradientPipeline(net, optimizer, on_nonfinite="skip", per_layer=False, log_every_n_steps=10**9)


class Loop:
    """What a manual step finds in a LightningModule, and the loop of the automatic one."""

    def __init__(self, recipe: Recipe, net: nn.Module) -> None:
        self.recipe, self.net = recipe, net
        self._all = [Guarded(net, optimizer) for optimizer in listed(recipe.optimizer(net))]
        self._schedulers = [LambdaLR(o.optimizer, recipe.schedule) for o in self._all if recipe.schedule]

    def optimizers(self) -> Any:
        return self._all[0] if len(self._all) == 1 else self._all

    def manual_backward(self, loss: Tensor) -> None:
        loss.backward()

    def run(self, batches: list[Any]) -> None:
        for _ in range(math.ceil(self.recipe.steps * self.recipe.accumulate / self.recipe.per_epoch)):
            for index, batch in enumerate(DataLoader(batches, batch_size=None), 1):  # it draws a seed, as there
                if self.recipe.manual is not None:
                    self.recipe.manual(self, batch)
                else:
                    self._step(batch, index, last=index == len(batches))

    def _step(self, batch: Any, index: int, last: bool) -> None:
        recipe, optimizer = self.recipe, self._all[0]
        loss = recipe.loss(self.net, batch) / recipe.accumulate
        if index % recipe.accumulate == 1 % recipe.accumulate:
            optimizer.zero_grad()
        loss.backward()
        if index % recipe.accumulate == 0 or last:
            optimizer.step(recipe.clip)
            for scheduler in self._schedulers:
                scheduler.step()


def metric_of(recipe: Recipe, seed: int) -> tuple[float, float]:
    """The metric before and after training; infinite if the run broke. The same as that of a Trainer's run."""
    torch.manual_seed(seed)
    net = recipe.model()
    before = recipe.worth(net)
    generator = torch.Generator().manual_seed(1000 + seed)
    batches = [recipe.data(generator, True) for _ in range(recipe.per_epoch)]
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Loop(recipe, net).run(batches)
        except NonFiniteGradientError:
            return before, math.inf
    after = recipe.worth(net)
    return before, after if math.isfinite(after) else math.inf
