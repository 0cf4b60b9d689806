"""Operator calls, host reads and passes over the gradients of one clipped step, counted, not timed.

    python -m benchmarks.operator_calls

A step is measuring, deciding and clipping, over 100 parameters of 64 x 64 that have taken 30 steps before. A pass is
as many elements read (or written) as the gradients have; what AGC reads of the weights is among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.machine import add_record_option, describe, in_words, markdown_table, save
from benchmarks.peers import timm_agc
from lightning_gradguard.clip.apply import apply_, is_clipped
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from tests.clip.policies import ALL
from tests.counting import Counting

NUM_PARAMS, SIDE = 100, 64


def network() -> nn.Module:
    net = nn.ModuleList([nn.Linear(SIDE, SIDE, bias=False) for _ in range(NUM_PARAMS)])
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net


def ours(policy: ClipPolicy) -> Callable[[], Any]:
    net = network()
    layout = Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    state = policy.init_state(layout, torch.device("cpu"))

    def step() -> None:
        measurement = measure(layout)
        clip = policy.decide(measurement, state)
        is_clipped(measurement, clip)
        apply_(measurement, clip)

    return step


def others() -> dict[str, Callable[[], Any]]:
    net = network()
    parameters = list(net.parameters())
    found = {
        "torch `clip_grad_norm_`": lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        "torch `clip_grad_norm_`, `foreach=False`": lambda: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=False),
        "torch `clip_grad_value_`": lambda: nn.utils.clip_grad_value_(parameters, 0.1),
    }
    if (agc := timm_agc()) is not None:
        found["timm `adaptive_clip_grad`"] = lambda: agc(parameters)
    return found


def row(name: str, step: Callable[[], Any]) -> list[str]:
    with torch.no_grad():
        for _ in range(30):
            step()
        with Counting() as counted:
            step()
    size = NUM_PARAMS * SIDE * SIDE
    return [
        name,
        str(counted.num_calls),
        str(counted.host_reads),
        f"{counted.read / size:.1f}",
        f"{counted.written / size:.1f}",
    ]


def main(argv: Sequence[str] | None = None) -> Sequence[Sequence[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_record_option(parser, "operator_calls")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [row(name, step) for name, step in others().items()]
    rows += [row(f"`{name}`", ours(make())) for name, make in ALL.items()]
    table = markdown_table(["one step, 100 parameters", "operator calls", "host reads", "reads", "writes"], rows)
    machine = describe()
    page = f"# Operator calls of clipping\n\n{__doc__}\n{table}\n\n{in_words(machine)}"
    save(options.name, {"machine": machine, "rows": rows}, page, record=options.record)
    print(table)
    return rows


if __name__ == "__main__":
    main()
