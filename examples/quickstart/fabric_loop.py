"""A loop of one's own with Fabric: the pipeline between `fabric.backward()` and `optimizer.step()`.

python examples/quickstart/fabric_loop.py
python examples/quickstart/fabric_loop.py --precision 16-mixed --accelerator cuda
"""

from __future__ import annotations

import argparse

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from torch import nn

from lightning_gradguard import GradientPipeline, MemorySink, ZClip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed", "16-mixed"], default="32-true")
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    if options.precision == "16-mixed":  # with a live loss scaler on CPU as well
        scaler = torch.amp.GradScaler(options.accelerator)
        precision = MixedPrecision("16-mixed", options.accelerator, scaler)
        fabric = Fabric(accelerator=options.accelerator, devices=1, plugins=[precision])
    else:
        fabric = Fabric(accelerator=options.accelerator, devices=1, precision=options.precision)
    fabric.seed_everything(0, verbose=False)

    net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    plain = torch.optim.AdamW(net.parameters(), lr=1e-3)
    model, optimizer = fabric.setup(net, plain)
    seen = MemorySink()
    pipeline = GradientPipeline(  # the plain module and optimizer: names stay short
        net, plain, clip=ZClip(max_norm=5.0), on_nonfinite="skip", sinks=[seen], log_every_n_steps=50
    )

    for step in range(options.steps):
        inputs = torch.randn(32, 16, device=fabric.device)
        if step == 120:
            inputs[0, 0] = float("nan")  # a broken sensor
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        fabric.backward(loss)
        pipeline.before_step(scaler=getattr(fabric.strategy.precision, "scaler", None))  # unscales, once
        optimizer.step()

    for record in seen.records:
        print(
            f"step {record.step:4d}  {record.verdict:8s}  norm {record.total_norm:8.3f}  threshold {record.threshold}"
        )
    finite = all(bool(parameter.isfinite().all()) for parameter in net.parameters())
    print(f"steps dropped: {seen.records[-1].skipped_total}; weights are finite: {finite}")


if __name__ == "__main__":
    main()
