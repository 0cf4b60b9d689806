"""Models that go bad on command, batch by batch, and the scaler that works on CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader


def half_precision(init_scale: float = 2.0**10) -> MixedPrecision:
    """float16 with a live loss scaler, on CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))


class Numbered(torch.utils.data.Dataset):
    """Random inputs with the number of their batch."""

    def __init__(self, num_batches: int, batch_size: int, width: int = 4) -> None:
        self.x = torch.randn(num_batches * batch_size, width, generator=torch.Generator().manual_seed(5))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], index // self.batch_size


def numbered(num_batches: int = 8, batch_size: int = 4) -> DataLoader:
    return DataLoader(Numbered(num_batches, batch_size), batch_size=batch_size)


class Norms(pl.LightningModule):
    """A net with batch normalization; ``spoil[i]`` gets the input of batch ``i`` and returns another."""

    def __init__(
        self,
        spoil: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        optimizer: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.spoil = dict(spoil or {})
        self.make_optimizer = optimizer or (lambda params: torch.optim.Adam(params, lr=0.01))
        self.batches_seen: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, number = batch
        index = int(number[0])
        x = self.spoil.get(index, lambda y: y)(x)
        loss = (self.net(x) - x.nan_to_num(0, 0, 0).clamp(-9, 9).sum(1, keepdim=True)).square().mean()
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def fill(value: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.full_like(x, value)


def state(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]


def all_finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
