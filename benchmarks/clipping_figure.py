"""The same noisy training under each policy, as one picture: docs/clipping.png.

    python -m benchmarks.clipping_figure

A small network learns real handwritten digits while every 50th batch is 255 times too large (the training of
examples/bad_batches.py, as a plain loop). A panel is one run with the same seed: the gradient norm before clipping,
what was applied, the policy's threshold where it has one, and in the title the test accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from benchmarks.machine import add_record_option, describe, figure_path, in_words, markdown_table, save
from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.apply import after, apply_, cosine, is_clipped
from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.clip.quantile import QuantileClip
from lightning_gradguard.clip.value import ValueClip
from lightning_gradguard.clip.zclip import ZClip
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure

POLICIES: dict[str, ClipPolicy | None] = {
    "no clipping": None,
    "NormClip(1.0)": NormClip(1.0),
    "ValueClip(0.05)": ValueClip(0.05),
    "ZClip()": ZClip(),
    "ZClip(original=True)": ZClip(original=True),
    "AutoClip()": AutoClip(),
    "QuantileClip()": QuantileClip(),
    "AGC()": AGC(),
    "AdaGC()": AdaGC(),
    "MaxClip()": MaxClip(),
    'ZClip(by="value")': ZClip(by="value"),
    'AutoClip(by="value")': AutoClip(by="value"),
}


@dataclass
class Trace:
    """One run: norms before and after clipping, the threshold in units of the norm, cosines and accuracy."""

    before: list[float] = field(default_factory=list)
    applied: list[float] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    clipped: int = 0
    accuracy: float = 0.0


def digits() -> tuple[Tensor, ...]:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=450, stratify=y, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    mean, std = train_x.mean(), train_x.std()
    return (train_x - mean) / std, (test_x - mean) / std, torch.tensor(parts[2]), torch.tensor(parts[3])


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(5):
        linear = nn.Linear(64, 64)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def train(policy: ClipPolicy | None, seed: int, epochs: int = 20) -> Trace:
    train_x, test_x, train_y, test_y = digits()
    torch.manual_seed(seed)
    net, trace, step = network(), Trace(), 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    layout = Layout.from_optimizer(net, optimizer)
    state = policy.init_state(layout, torch.device("cpu")) if policy else {}
    for _ in range(epochs):
        order = torch.randperm(len(train_x))
        for batch in order.split(64)[:-1]:
            step += 1
            x = train_x[batch] * (255.0 if step % 50 == 0 else 1.0)
            optimizer.zero_grad()
            F.cross_entropy(net(x), train_y[batch]).backward()
            _clip(layout, policy, state, trace)
            optimizer.step()
    with torch.no_grad():
        trace.accuracy = float((net(test_x).argmax(1) == test_y).float().mean())
    return trace


@torch.no_grad()
def _clip(layout: Layout, policy: ClipPolicy | None, state: dict[str, Tensor], trace: Trace) -> None:
    measurement = measure(layout)
    trace.before.append(float(measurement.total))
    if policy is None:
        trace.applied.append(float(measurement.total))
        return
    clip = policy.decide(measurement, state)
    predicted = after(measurement, clip)
    trace.applied.append(float(predicted.total))
    if bool(is_clipped(measurement, clip)):
        trace.clipped += 1
        trace.cosines.append(float(cosine(measurement, predicted)))
    if clip.threshold is not None and clip.coefficient is not None:
        trace.threshold.append(float(clip.threshold))
    apply_(measurement, clip)


def draw(traces: dict[str, Trace], path: Path) -> None:
    figure, axes = plt.subplots(4, 3, figsize=(12, 11), sharex=True, sharey=True)
    for axis, (name, trace) in zip(axes.flat, traces.items(), strict=True):
        axis.semilogy(trace.before, color="0.7", linewidth=0.8, label="before clipping")
        axis.semilogy(trace.applied, color="tab:blue", linewidth=0.8, label="applied")
        if trace.threshold:
            axis.semilogy(trace.threshold, color="tab:orange", linewidth=1.2, label="threshold")
        share = f"{trace.clipped / len(trace.before):.0%} of steps clipped" if POLICIES[name] else ""
        axis.set_title(f"{name}: accuracy {trace.accuracy:.3f}\n{share}", fontsize=10)
        axis.set_ylim(1e-3, 1e4)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("gradient norm")
    axes[0, 1].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="for the table; the picture shows seed 0 (default: 5)")
    add_record_option(parser, "clipping_figure")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine, rows, first = describe(), [], {}
    for name, policy in POLICIES.items():
        runs = [train(policy, seed) for seed in range(args.seeds)]
        first[name] = runs[0]
        accuracy = torch.tensor([run.accuracy for run in runs])
        cosines = [value for run in runs for value in run.cosines]
        rows.append(
            [
                f"`{name}`",
                f"{accuracy.mean():.3f} ± {accuracy.std(correction=0):.3f}",
                f"{sum(run.clipped for run in runs) / sum(len(run.before) for run in runs):.1%}",
                f"{sum(cosines) / len(cosines):.3f}" if cosines else "",
            ]
        )
        print(*rows[-1], flush=True)
    draw(first, figure_path("clipping.png", record=args.record))
    table = markdown_table(["policy", f"accuracy, {args.seeds} seeds", "steps clipped", "cosine when clipped"], rows)
    page = f"# A noisy training\n\n{table}\n\n{in_words(machine)}"
    save(args.name, {"machine": machine, "rows": rows}, page, record=args.record)


if __name__ == "__main__":
    main()
