"""What the probes of the diagnosis cost at the default interval, against the same steps without them.

    python -m benchmarks.probing

One process, one thread. Blocks of 50 steps, one of which is sampled, alternate with blocks without instruments; CPU
time of the process, median of paired ratios and their quartiles. The first row of each model is the same block twice:
what the method itself cannot tell apart.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from benchmarks.detection.zoo import find
from lightning_gradguard.diagnose import default_rules
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.probes.probes import Instruments

EVERY = 50  # the callbacks' default
MODELS = (
    "dense digits",
    "ten convolutions with batch norm",
    "LSTM language model",
    "decoder transformer, pre-norm",
)


class Loop:
    """A training run that goes on for as many steps as asked."""

    def __init__(self, name: str, sampled: bool) -> None:
        torch.manual_seed(0)
        recipe = find(name)[0].recipe
        self.net: nn.Module = recipe.model()
        made = recipe.optimizer(self.net)
        assert isinstance(made, torch.optim.Optimizer)
        self.optimizer, self.loss = made, recipe.loss
        generator = torch.Generator().manual_seed(0)
        self.batches = [recipe.data(generator, True) for _ in range(EVERY)]
        self.instruments = Instruments(self.net, EVERY) if sampled else None
        self.pipeline = GradientPipeline(
            self.net,
            self.optimizer,
            rules=default_rules() if sampled else None,
            log_every_n_steps=EVERY,
            instruments=self.instruments,
        )
        self.step = EVERY  # past the denser sampling of the first steps
        self.run(5)
        self.step = EVERY

    def run(self, steps: int) -> float:
        """CPU seconds of that many steps."""
        started = time.process_time()
        for index in range(steps):
            if self.instruments is not None:
                self.instruments.before_forward(self.step)
            loss = self.loss(self.net, self.batches[index])
            if self.instruments is not None:
                self.instruments.after_forward(loss)
            self.optimizer.zero_grad()
            loss.backward()
            self.pipeline.before_step(step=self.step)
            self.optimizer.step()
            self.pipeline.after_step()
            self.step += 1
        return time.process_time() - started


def ratios(name: str, sampled: bool, rounds: int) -> list[float]:
    """Time of a block over that of a plain block beside it."""
    plain, other = Loop(name, sampled=False), Loop(name, sampled=sampled)
    found = []
    for number in range(rounds):
        pair = [plain, other] if number % 2 else [other, plain]
        seconds = {id(loop): loop.run(EVERY) for loop in pair}
        found.append(seconds[id(other)] / seconds[id(plain)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="folder for probing.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110, record=True)
    table = Table("model", "block", "time over a plain block", "quartiles", title=f"One sampled step in {EVERY}")
    jobs = [(name, sampled) for name in MODELS for sampled in (False, True)]
    for name, sampled in track(jobs, console=Console(stderr=True)):
        found = ratios(name, sampled, args.rounds)
        low, _, high = statistics.quantiles(found, n=4)
        what = "all probes and rules" if sampled else "plain against plain"
        table.add_row(name, what, f"{statistics.median(found):.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)
    console.print(f"torch {torch.__version__}, {platform.machine()}, one thread, {time.strftime('%Y-%m-%d')}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = f"# Cost of the probes\n\n`python -m benchmarks.probing`\n\n```text\n{console.export_text()}```\n"
        (args.out / "probing.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
