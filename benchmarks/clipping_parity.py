"""Each clipping policy against its slow twin, and how long each takes to follow a lasting rise of the norm.

    python -m benchmarks.clipping_parity                 # 2,000 sequences a policy, some ten minutes
    python -m benchmarks.clipping_parity --sequences 50

Parity: made-up trainings (noise, spikes, plateaus, changes of level over four orders of magnitude) go through a policy
in float32 and through its twin in float64, which is written from the formula. The deviation is the largest relative
difference of a threshold, or of an element of the clipped gradients relative to the largest of its tensor.

Recovery: after 300 steps of norms with 5 % noise the level rises for good. Counted are the steps until a policy clips
no more often, over the next 50 steps, than it did before the rise (two standard errors allowed).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch

from benchmarks.machine import add_record_option, describe, in_words, markdown_table, save
from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.zclip import ZClip
from tests import reference
from tests.clip.bench import SHAPES, Run
from tests.clip.policies import ADAPTIVE, TWINS
from tests.clip.test_parity import deviation

RISES = (1.2, 1.5, 2.0, 3.0, 10.0)
LONGEST = 3000
AHEAD = 50
PAPERS: dict[str, Callable[[], ClipPolicy]] = {
    "AutoClip, paper": lambda: AutoClip(window=10_000, original=True),
    "ZClip, paper": lambda: ZClip(original=True),
    "AdaGC, paper": lambda: AdaGC(original=True),
    "MaxClip, paper": lambda: MaxClip(decay=0.999, original=True),
}


def parity(sequences: int, steps: int) -> list[list[str]]:
    rows = []
    for name in TWINS:
        worst = 0.0
        for seed in range(sequences):
            worst = max(worst, deviation(name, 1000 + seed, steps))
            if sys.stderr.isatty() and seed % 20 == 0:
                print(f"\r{name}: {seed}/{sequences}", end="", file=sys.stderr)
        rows.append([f"`{name}`", f"{sequences:,} x {steps}", f"{worst:.1e}"])
        print(*rows[-1], flush=True)
    return rows


def recovery() -> list[list[str]]:
    rows = []
    for name, make in (ADAPTIVE | PAPERS).items():
        usual, _ = at_rest(make)
        rows.append([f"`{name}`", f"{usual:.0%}", *[steps_to_recover(make, rise) for rise in RISES]])
        print(*rows[-1], flush=True)
    return rows


def at_rest(make: Callable[[], ClipPolicy]) -> tuple[float, Run]:
    """How often a policy clips a tensor before the rise, and the policy then."""
    run, generator = Run(make()), torch.Generator().manual_seed(0)
    clipped = [_step(run, 1.0, generator) for _ in range(300)]
    return sum(clipped[-200:]) / 200, run


def steps_to_recover(make: Callable[[], ClipPolicy], rise: float) -> str:
    usual, run = at_rest(make)
    generator = torch.Generator().manual_seed(1)
    allowed = usual + 2.0 * math.sqrt(usual * (1.0 - usual) / AHEAD / len(SHAPES)) + 0.01
    after: list[float] = []
    while len(after) < LONGEST:
        after.append(_step(run, rise, generator))
        if len(after) >= AHEAD and sum(after[-AHEAD:]) / AHEAD <= allowed:
            return str(len(after) - AHEAD)
    return f"> {LONGEST - AHEAD}"


def _step(run: Run, level: float, generator: torch.Generator) -> float:
    """Fraction of the tensors that are clipped in a step."""
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    factor = level * math.exp(0.05 * float(torch.randn((), generator=generator))) / reference.norm(grads)
    grads = [grad * factor for grad in grads]
    _, left = run.step(grads)
    changed = [not torch.allclose(a, b, rtol=2e-6) for a, b in zip(grads, left, strict=True)]
    return sum(changed) / len(changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    add_record_option(parser, "clipping_parity")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe()
    recovered = recovery()
    compared = parity(args.sequences, args.steps)
    page = f"""# Clipping policies: parity and recovery

{__doc__.strip()}

## Parity

{markdown_table(["policy", "sequences x steps", "largest deviation"], compared)}

## Steps to recover from a lasting rise

{markdown_table(["policy", "clipped before", *[f"x {rise:g}" for rise in RISES]], recovered)}

{in_words(machine)}"""
    save(args.name, {"machine": machine, "parity": compared, "recovery": recovered}, page, record=args.record)


if __name__ == "__main__":
    main()
