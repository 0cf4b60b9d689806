"""Kernels that a quiet step launches on an accelerator, counted without one: ``python -m benchmarks.kernels``.

Fake tensors on a CUDA device go the way that real ones go, and hold no values: whoever reads one on the host gets an
error. Each operator that is no view counts as one kernel; a foreach call counts as one, though torch splits very long
lists. Every figure is for 100 tensors.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import machine
from lightning_gradguard import AutoClip, ClipPolicy, GradientPipeline, NormClip, QuantileClip, ZClip
from lightning_gradguard.guard.guard import Guard
from lightning_gradguard.guard.recovery import Recovery

NUM_TENSORS = 100
_FREE = ("aten.empty", "aten.detach", "aten.alias", "aten.lift_fresh", "prim.device")


class Kernels(TorchDispatchMode):
    """Counts what is launched while it is active.

    Attributes:
        launched: how often each operator was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not str(func).startswith(_FREE):
            self.launched[str(func)] += 1
        return result


def count(clip: ClipPolicy | None = None, *, guard: bool = False) -> Counter[str]:
    """Counts the kernels of a pipeline's first step, with a fused optimizer; how to measure was planned before it.

    From the second step on the host reads, without waiting, what became of the one before: fake tensors have no value.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = nn.ParameterList([torch.empty(70, 70, device="cuda") for _ in range(NUM_TENSORS)])
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        started = Recovery(nn.Module(), [])
        started.start()  # of a model it reads the weights, once, before the first step
        pipeline = GradientPipeline(
            net,
            optimizer,
            clip=clip,
            on_nonfinite=Guard(on_device=True) if guard else None,
            recovery=started,
            log_every_n_steps=10**9,
        )
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)
        pipeline.layout.measure()
        with Kernels() as kernels:
            pipeline.before_step(log=False)
    return kernels.launched


VARIANTS: dict[str, Callable[[], Counter[str]]] = {
    "watching": count,
    "guard": lambda: count(guard=True),
    "guard and NormClip": lambda: count(NormClip(1.0), guard=True),
    "guard and ZClip": lambda: count(ZClip(), guard=True),
    "guard and AutoClip": lambda: count(AutoClip(), guard=True),
    "guard and QuantileClip": lambda: count(QuantileClip(), guard=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table to benchmarks/results/kernels.md")
    parser.add_argument("--names", action="store_true", help="print which kernels a step with guard and ZClip launches")
    options = parser.parse_args()
    rows = [[name, str(sum(run().values()))] for name, run in VARIANTS.items()]
    table = machine.markdown_table(["a quiet step on 100 tensors", "kernels"], rows)
    print(table)
    if options.names:
        print("\n".join(f"{times} {name}" for name, times in VARIANTS["guard and ZClip"]().most_common()))
    if options.record:
        head = f"# Kernels launched on an accelerator\n\n{machine.in_words(machine.describe())}"
        (machine.RESULTS / "kernels.md").write_text(f"{head}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
