"""How often ``SpikeRule()`` cries wolf: its flags over healthy runs, for the gradient norm and for the loss.

    python -m benchmarks.spike_alarms [--steps 300] [--seeds 20 21]

The runs are the healthy ones of the detection benchmark. No threshold of the rule was set on them.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import replace

import torch
from rich.progress import track

from benchmarks.detection.kind import Kind
from benchmarks.detection.training import train
from benchmarks.detection.zoo import HALVES
from lightning_gradguard import GradGuard
from lightning_gradguard.spikes import SpikeRule, SpikeWatch

SETTINGS = {
    "SpikeRule()": SpikeRule(),
    "min_ratio=10": SpikeRule(min_ratio=10.0),
    "min_ratio=3": SpikeRule(min_ratio=3.0),
}


def flags(rule: SpikeRule, values: list[float]) -> int:
    """How many values of one series are flagged."""
    watch = SpikeWatch(rule)
    return sum(watch.see(value) is not None for value in values)


def series(kind: Kind, seed: int, steps: int) -> dict[str, list[list[float]]]:
    """Gradient norm (one series an optimizer) and loss of every step of one run."""
    outcome = train(replace(kind.recipe, steps=steps), seed, guard=GradGuard(log_every_n_steps=1))
    norms: dict[int, list[float]] = {}
    for record in outcome.records:
        norms.setdefault(record.optimizer, []).append(record.total_norm)
    return {"gradient norm": list(norms.values()), "loss": [[r.loss for r in outcome.records if r.loss is not None]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    seen: Counter[str] = Counter()
    runs_hit: Counter[tuple[str, str]] = Counter()
    worst: Counter[str] = Counter()
    runs = [(kind, seed) for kinds in HALVES.values() for kind in kinds for seed in arguments.seeds]
    for kind, seed in track(runs, "healthy runs"):
        for what, all_values in series(kind, seed, arguments.steps).items():
            seen[what] += sum(math.isfinite(value) for values in all_values for value in values)
            for name, rule in SETTINGS.items():
                found = sum(flags(rule, values) for values in all_values)
                counts[name, what] += found
                runs_hit[name, what] += found > 0
                if name == "SpikeRule()" and found:
                    worst[f"{kind.name}: {what}"] += found
    print(f"\n{len(runs)} healthy runs of {arguments.steps} steps\n")
    print("| rule | series | values | flagged | a million | runs with a flag |\n|---|---|---|---|---|---|")
    for name in SETTINGS:
        for what, total in seen.items():
            found = counts[name, what]
            per_million = 1e6 * found / total
            print(
                f"| {name} | {what} | {total:,} | {found} | {per_million:.0f} | {runs_hit[name, what]} of {len(runs)} |"
            )
    print("\nMost flags of SpikeRule(): " + "; ".join(f"{name} {count}" for name, count in worst.most_common(8)))


if __name__ == "__main__":
    main()
