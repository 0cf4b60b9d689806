"""What one step of a small model costs us, against ``clip_grad_norm_``: ``python -m benchmarks.small_models``.

Networks of 2 to 128 linear layers, whose gradients are there already: timed is ``before_step`` alone, of a quiet
step, and in turn torch's own clipping of the same gradients. Each figure is the median over rounds, with the smallest
and the largest of five blocks of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.machine import RESULTS, describe, in_words, markdown_table
from lightning_gradguard import AGC, GradientPipeline, NormClip, TensorBoardSink, ZClip, default_rules

LAYERS = (2, 8, 32, 128)
WIDTH = 16
_CALLS = 5  # in a row, so that the clock is read seldom
_BLOCKS = 5

ROLES: dict[str, Callable[[str], dict[str, Any]]] = {
    "watching": lambda folder: {},
    "NormClip": lambda folder: {"clip": NormClip(1.0)},
    "ZClip": lambda folder: {"clip": ZClip()},
    "AGC": lambda folder: {"clip": AGC()},
    "guard": lambda folder: {"on_nonfinite": "skip"},
    "everything": lambda folder: {
        "clip": ZClip(),
        "on_nonfinite": "skip",
        "rules": default_rules(),
        "sinks": [TensorBoardSink(folder)],
    },
}


def steps(num_layers: int, folder: str) -> dict[str, Callable[[], object]]:
    """A step of each role, and of torch's own clipping, over gradients that stay as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(num_layers)])
    params = list(net.parameters())
    for parameter in params:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    found: dict[str, Callable[[], object]] = {"clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(params, 1.0)}
    for role, arguments in ROLES.items():
        optimizer = torch.optim.SGD(params, lr=0.0)
        given = {"rules": [], **arguments(folder)}
        pipeline = GradientPipeline(net, optimizer, log_every_n_steps=10**9, **given)
        found[role] = lambda pipeline=pipeline: pipeline.before_step(log=False)
    return found


def timed(todo: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each, alternating: one figure for each block of rounds."""
    figures: dict[str, list[float]] = {name: [] for name in todo}
    for run in todo.values():
        for _ in range(40):
            run()
    for _ in range(_BLOCKS):
        block: dict[str, list[float]] = {name: [] for name in todo}
        for _ in range(rounds):
            for name, run in todo.items():
                start = time.perf_counter()
                for _ in range(_CALLS):
                    run()
                block[name].append((time.perf_counter() - start) / _CALLS * 1e6)
        for name, values in block.items():
            figures[name].append(statistics.median(values))
    return figures


def table(rounds: int) -> str:
    """The table, in Markdown: microseconds, and how many times those of torch's clipping."""
    rows = []
    for num_layers in LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            figures = timed(steps(num_layers, folder), rounds)
        plain = figures["clip_grad_norm_"]
        for name, values in figures.items():
            ratios = [ours / theirs for ours, theirs in zip(values, plain, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append([str(num_layers), name, f"{statistics.median(values):.0f}", ratio])
    return markdown_table(["linear layers", "what", "microseconds a step", "against clip_grad_norm_"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of each of five blocks")
    parser.add_argument("--record", action="store_true", help="write the table to benchmarks/results/small_models.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    page = table(options.rounds)
    print(page)
    if options.record:
        head = f"# What a step of a small model costs\n\n{in_words(describe())}"
        (RESULTS / "small_models.md").write_text(f"{head}\n\n{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
