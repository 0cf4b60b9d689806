"""Two optimizers over one net, Muon for the matrices and AdamW for the rest: one norm, one decision for both.

python examples/quickstart/two_optimizers.py

Two that pull against each other, as in a GAN, are not joint: each then has a norm, a threshold and a verdict of its own
(examples/gan.py).
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradguard import GradGuard, MemorySink, ZClip


class Sum(L.LightningModule):
    """Learns to add 16 numbers, with manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        loss = (self.net(inputs) - targets).square().mean()
        muon, adamw = self.optimizers()
        muon.zero_grad()
        adamw.zero_grad()
        self.manual_backward(loss)
        muon.step()  # here both are judged, and clipped by one factor
        adamw.step()
        self.log("loss", loss, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [parameter for parameter in self.parameters() if parameter.ndim == 2]  # Muon takes nothing else
        rest = [parameter for parameter in self.parameters() if parameter.ndim != 2]
        return [torch.optim.Muon(matrices, lr=2e-2), torch.optim.AdamW(rest, lr=1e-3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=5)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args()

    L.seed_everything(0, verbose=False)
    inputs = torch.randn(64 * 32, 16)
    targets = inputs.sum(1, keepdim=True)
    inputs[100, 0] = float("nan")  # a broken sensor: one batch of every epoch is bad
    seen = MemorySink()
    trainer = L.Trainer(
        max_epochs=options.max_epochs,
        accelerator=options.accelerator,
        callbacks=[GradGuard(clip=ZClip(max_norm=5.0), on_nonfinite="skip", joint=True, sinks=[seen])],
        logger=False,
        enable_checkpointing=False,
    )
    model = Sum()
    trainer.fit(model, DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True))

    last = seen.records[-1]
    finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    print(f"one record for both optimizers: {len(last.layers)} layers, norm {last.total_norm:.3f}")
    print(f"steps dropped: {last.skipped_total}; weights are finite: {finite}")


if __name__ == "__main__":
    main()
