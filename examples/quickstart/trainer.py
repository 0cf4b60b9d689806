"""A Lightning Trainer with one callback that lets you see, tame and survive gradients.

python examples/quickstart/trainer.py
tensorboard --logdir runs/quickstart        # then the tab *Gradient flow*
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradguard import GradGuard, ZClip


class Sum(L.LightningModule):
    """Learns to add 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = (self.net(inputs) - targets).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=5)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args()

    L.seed_everything(0, verbose=False)
    inputs = torch.randn(64 * 32, 16)
    targets = inputs.sum(1, keepdim=True)
    inputs[100, 0] = float("nan")  # a broken sensor: one batch of every epoch is bad
    guard = GradGuard(
        clip=ZClip(max_norm=5.0),  # an adaptive threshold, under a ceiling
        on_nonfinite="skip",  # a step with NaN in it is dropped: no weight and no momentum moves
        prog_bar=True,
    )
    trainer = L.Trainer(
        max_epochs=options.max_epochs,
        accelerator=options.accelerator,
        callbacks=[guard],
        default_root_dir="runs/quickstart",
        log_every_n_steps=10,
    )
    model = Sum()
    trainer.fit(model, DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True))

    finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    print(f"loss: {float(trainer.callback_metrics['loss']):.4f}; weights are finite: {finite}")


if __name__ == "__main__":
    main()
