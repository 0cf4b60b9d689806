"""Through how many files a step goes: ``python -m benchmarks.traced``.

A step is traced with ``sys.setprofile``: the files of the package it enters, the functions it calls, and how often it
goes from one file to another. Three kinds of step are traced: a quiet one, one that makes a record, and one whose
gradients are not finite. Whoever wants to know what happens in a step has these files to read, in this order.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import lightning_gradguard
from benchmarks.machine import RESULTS, describe, in_words, markdown_table
from lightning_gradguard import AGC, ClipPolicy, GradientPipeline, Instruments, TensorBoardSink, ZClip, default_rules

PACKAGE = str(Path(lightning_gradguard.__file__).parent)


@dataclass
class Trace:
    """What one step went through.

    Attributes:
        calls: the file of each call into the package, in order.
    """

    calls: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """The files of the package, in the order in which they were first entered."""
        return list(dict.fromkeys(self.calls))

    @property
    def changes(self) -> int:
        """How often a call went to another file than the call before it."""
        return sum(one != other for one, other in zip(self.calls, self.calls[1:], strict=False))


@contextmanager
def traced() -> Iterator[Trace]:
    """Traces what runs inside."""
    trace = Trace()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(PACKAGE):
            trace.calls.append(path[len(PACKAGE) + 1 :])

    sys.setprofile(profile)
    try:
        yield trace
    finally:
        sys.setprofile(None)


class Loop:
    """A plain training loop with everything on.

    Args:
        policy: what clips.
        folder: where the event file goes.
    """

    def __init__(self, policy: ClipPolicy, folder: str) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.net.parameters())
        self.probes = Instruments(self.net)
        self.pipeline = GradientPipeline(
            self.net,
            self.optimizer,
            clip=policy,
            on_nonfinite="skip",
            rules=default_rules(),
            sinks=[TensorBoardSink(folder)],
            instruments=self.probes,
        )
        self.step = 0

    def run(self, *, log: bool = False, factor: float = 1.0) -> None:
        """One step; ``factor`` scales its loss."""
        self.probes.before_forward(self.step)
        loss = self.net(torch.randn(16, 8)).square().mean() * factor
        self.probes.after_forward(loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.pipeline.before_step(step=self.step, log=log)
        self.optimizer.step()
        self.pipeline.after_step()
        self.step += 1


STEPS: dict[str, Callable[[Loop], None]] = {
    "quiet": lambda loop: loop.run(),
    "logged": lambda loop: loop.run(log=True),
    "bad": lambda loop: loop.run(factor=math.nan),
}
POLICIES: dict[str, Callable[[], ClipPolicy]] = {"ZClip": ZClip, "AGC": AGC}


def trace(policy: ClipPolicy, step: Callable[[Loop], None], warm_up: int = 40) -> Trace:
    """Traces one step of a run that is under way: what is made once has been made, and no probe is sampled."""
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(policy, folder)
        for _ in range(warm_up):
            loop.run()
        with traced() as found:
            step(loop)
        loop.pipeline.sinks[0].close()
    return found


def table() -> str:
    """The table, in Markdown."""
    rows = []
    for step, run in STEPS.items():
        for name, make in POLICIES.items():
            found = trace(make(), run)
            rows.append([step, name, str(len(found.files)), str(found.changes), str(len(found.calls))])
    return markdown_table(["step", "policy", "files", "changes of file", "calls"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table to benchmarks/results/traced.md")
    parser.add_argument("--files", action="store_true", help="print the files of each step in their order")
    options = parser.parse_args()
    page = table()
    print(page)
    for step, run in STEPS.items() if options.files else ():
        print(f"\n{step} step with ZClip:")
        print("\n".join(f"  {name}" for name in trace(ZClip(), run).files))
    if options.record:
        head = f"# Through how many files a step goes\n\n{in_words(describe())}"
        (RESULTS / "traced.md").write_text(f"{head}\n\n{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
