"""The fully connected classifier that several of the small studies train."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
INITS = {
    "torch": None,  # the default of nn.Linear: uniform, gain 1/sqrt(3)
    "xavier": nn.init.xavier_normal_,
    "he": nn.init.kaiming_normal_,
}


class Hidden(nn.Module):
    """One hidden layer, with a way around it if ``residual``."""

    def __init__(self, width: int, activation: str, norm: bool, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.linear(x)))
        return x + y if self.residual else y


class MLP(L.LightningModule):
    """Classifies flattened images with ``depth`` hidden layers of ``width`` units, trained by SGD.

    Args:
        num_pixels: size of a flattened image.
        depth: number of hidden layers.
        width: units in each.
        activation: a key of ``ACTIVATIONS``.
        init: a key of ``INITS``, for all linear layers.
        norm: batch normalization in every hidden layer but the first.
        residual: identity connections around every hidden layer but the first.
        lr: learning rate of SGD.
        momentum: of SGD.
    """

    def __init__(
        self,
        num_pixels: int,
        *,
        depth: int = 5,
        width: int = 64,
        activation: str = "relu",
        init: str = "torch",
        norm: bool = False,
        residual: bool = False,
        lr: float = 0.1,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first = nn.Linear(num_pixels, width)
        self.activation = ACTIVATIONS[activation]()
        self.hidden = nn.Sequential(*(Hidden(width, activation, norm, residual) for _ in range(depth - 1)))
        self.head = nn.Linear(width, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")
        fill = INITS[init]
        if fill is not None:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    fill(layer.weight)
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.activation(self.first(x.flatten(1)))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.accuracy.update(self(x), y)
        self.log("test/accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=self.hparams.momentum)
