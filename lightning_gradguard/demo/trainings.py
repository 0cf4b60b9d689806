"""Small trainings, each with its cure: a deep network that does not learn, and a data set with two bad batches."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

_FEATURES = 20
_BATCH = 32


class Classifier(pl.LightningModule):
    """Tells two classes apart by the sign of a sum.

    Args:
        depth: number of linear layers.
        activation: between the layers.
        normalize: whether each activation is preceded by layer normalization.
        bad_batches: at these batches of each epoch the loss is not a number.
    """

    def __init__(
        self,
        depth: int,
        activation: type[nn.Module] = nn.ReLU,
        normalize: bool = False,
        bad_batches: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth - 1):
            layers.append(nn.Linear(_FEATURES if index == 0 else 32, 32))
            layers += [nn.LayerNorm(32)] if normalize else []
            layers.append(activation())
        self.net = nn.Sequential(*layers, nn.Linear(32, 2))
        self.bad_batches = bad_batches

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if batch_idx in self.bad_batches:
            loss = loss * float("nan")
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def make_batches() -> DataLoader[Any]:
    """1,600 samples with known classes, in 50 batches."""
    samples = torch.randn(50 * _BATCH, _FEATURES, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(samples, (samples[:, :3].sum(1) > 0).long()), batch_size=_BATCH)


@torch.no_grad()
def final_loss(module: Classifier) -> float:
    """Loss over all samples, NaN where a weight is."""
    losses = [nn.functional.cross_entropy(module.net(x), y) for x, y in make_batches()]
    return float(torch.stack(losses).mean())
