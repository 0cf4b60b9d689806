"""A plain PyTorch loop, without Lightning: see, tame and survive between `backward()` and `optimizer.step()`.

python examples/quickstart/plain_loop.py
python examples/quickstart/plain_loop.py --precision 16-mixed --device cuda
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
from torch import nn

from lightning_gradguard import GradientPipeline, MemorySink, ZClip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["32", "16-mixed"], default="32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    device, mixed = torch.device(options.device), options.precision == "16-mixed"

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type) if mixed else None
    seen = MemorySink()
    pipeline = GradientPipeline(
        net, optimizer, clip=ZClip(max_norm=5.0), on_nonfinite="skip", sinks=[seen], log_every_n_steps=50
    )

    for step in range(options.steps):
        inputs = torch.randn(32, 16, device=device)
        if step == 120:
            inputs[0, 0] = float("nan")  # a broken sensor
        with torch.autocast(device.type, torch.float16) if mixed else nullcontext():
            loss = (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            pipeline.before_step()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            pipeline.before_step(scaler=scaler)  # unscales, once
            scaler.step(optimizer)
            scaler.update()

    for record in seen.records:
        print(
            f"step {record.step:4d}  {record.verdict:8s}  norm {record.total_norm:8.3f}  threshold {record.threshold}"
        )
    print(f"steps dropped: {seen.records[-1].skipped_total}; weights are finite: {all_finite(net)}")


def all_finite(net: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in net.parameters())


if __name__ == "__main__":
    main()
