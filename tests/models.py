"""Tiny models with real gradients, and ways to spoil a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Optimizers = Callable[[Any], Any]


class Resumable(DataLoader):
    """Goes on in the middle of an epoch, as Lightning asks of a loader for an exact resume."""

    position = 0
    start = 0

    def __iter__(self) -> Iterator[Tensor]:
        start, self.start = self.start, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.position = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["position"]


def batches(num_batches: int = 8, batch_size: int = 4, seed: int = 1) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return Resumable(torch.randn(num_batches * batch_size, 4, generator=generator), batch_size=batch_size)


class Regression(pl.LightningModule):
    """Two linear layers; at batch ``i`` the loss is multiplied by ``factors[i]``, where given."""

    def __init__(self, factors: Mapping[int, float] | None = None, optimizer: Optimizers | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.factors = dict(factors or {})
        self.make_optimizer = optimizer or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        loss = loss * self.factors.get(batch_idx, 1.0)
        self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Pair(pl.LightningModule):
    """Two nets pulling against each other under manual optimization, as in a GAN."""

    def __init__(self, factors: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Linear(4, 4)
        self.critic = nn.Linear(4, 1)
        self.factors = dict(factors or {})

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        first, second = self.optimizers()
        loss = self.critic(self.generator(batch)).square().mean() * self.factors.get(batch_idx, 1.0)
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward(-self.critic(self.generator(batch).detach()).square().mean())
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.generator.parameters(), lr=0.01, momentum=0.9),
            torch.optim.Adam(self.critic.parameters(), lr=0.01),
        )


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
