"""Clipping by value turns the gradient, clipping by norm only shortens it: by how much, and does it cost anything?

Trains the language model with its gradient clipped to norm 0.25, and on every step that is clipped asks what each kind
of clipping would have done to that very gradient. Then trains with each kind to see what the turn costs:

    python examples/clipping_direction.py
    python examples/clipping_direction.py --compare --seeds 5
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import lightning as L
import torch
from harness import data, studies
from harness.report import Run, Study
from lstm_language_model import LanguageModel, sequences
from torch import Tensor

from lightning_gradguard import AdaptiveGradientClipping, ClipPolicy, GradientNormMonitor, NormClip, ValueClip


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    left, right = (torch.cat([part.flatten() for part in parts]).double() for parts in (a, b))
    return float(left @ right / (left.norm() * right.norm()))


def by_norm(grads: Sequence[Tensor], norm: float) -> list[Tensor]:
    total = float(torch.cat([grad.flatten() for grad in grads]).norm())
    return [grad * min(1.0, norm / total) for grad in grads]


def by_tensor(grads: Sequence[Tensor], norm: float) -> list[Tensor]:
    """Each tensor by its own norm, all to the same share of ``norm``."""
    return [part for grad in grads for part in by_norm([grad], norm / math.sqrt(len(grads)))]


def by_value(grads: Sequence[Tensor], value: float) -> list[Tensor]:
    return [grad.clamp(-value, value) for grad in grads]


def value_for_norm(grads: Sequence[Tensor], norm: float) -> float:
    """The bound at which clipping by value leaves exactly this norm: found by halving an interval."""
    flat = torch.cat([grad.flatten() for grad in grads]).abs()
    low, high = 0.0, float(flat.max())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if float(flat.clamp(max=middle).norm()) > norm else (middle, high)
    return high


class Compare(L.Callback):
    """On every step that norm clipping would clip: the cosine between the gradient and what each kind makes of it."""

    def __init__(self, norm: float) -> None:
        self.norm = norm
        self.cosines: dict[str, list[float]] = {}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        grads = [weight.grad for weight in pl_module.parameters()]
        if float(torch.cat([grad.flatten() for grad in grads]).norm()) <= self.norm:
            return
        kinds = {
            f"norm {self.norm:g}": by_norm(grads, self.norm),
            f"each tensor, together {self.norm:g}": by_tensor(grads, self.norm),
            "value, to the same norm": by_value(grads, value_for_norm(grads, self.norm)),
            "value 0.01": by_value(grads, 0.01),
            "value 0.001": by_value(grads, 0.001),
        }
        for kind, clipped in kinds.items():
            self.cosines.setdefault(kind, []).append(cosine(grads, clipped))


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=2, quick="one epoch instead of two")
    parser.add_argument("--norm", type=float, default=0.25, help="ceiling of the gradient norm (default: 0.25)")
    parser.add_argument("--text", metavar="FILE", help="any UTF-8 text instead of Python's documentation")
    args = studies.parse(parser, argv, quick_epochs=1)
    if not args.norm > 0:
        raise data.UsageError(f"--norm must be positive, got {args.norm}")
    text = data.text(args.text)
    loaders = sequences(text.train, 32, 50), sequences(text.val, 32, 50)
    trained: dict[str, ClipPolicy] = {f"norm {args.norm:g}": NormClip(args.norm), "value 0.01": ValueClip(0.01)}
    if args.compare:
        trained["value 0.001"] = ValueClip(0.001)
    study = Study(
        name="clipping_direction",
        question="What does clipping do to the direction of the gradient, and what does that cost?",
        metrics={"cosine": "cosine", "lowest": "lowest cosine", "val/bits_per_character": "bits per character"},
        source=f"{text.source}; cosines: clipped steps of the run with norm {args.norm:g}",
        command=args.command,
    )
    with studies.Bench(study, args, 5 * args.seeds) as bench:
        for seed in bench.seeds:
            seen: dict[str, list[float]] = {}
            for name, policy in trained.items():
                L.seed_everything(seed, verbose=False)
                compare = Compare(args.norm)

                def finish(run: Run, compare: Compare = compare, seen: dict[str, list[float]] = seen) -> None:
                    seen.update({kind: found for kind, found in compare.cosines.items() if kind not in seen})
                    run.metrics |= summary(seen.get(run.variant, []))

                training = bench.begin(name, seed)
                trainer = L.Trainer(
                    callbacks=[
                        *([] if seen else [compare]),
                        AdaptiveGradientClipping(policy),
                        GradientNormMonitor(rules=training.rules, sinks=[training.memory]),
                        *training.callbacks,
                    ],
                    **training.quiet,
                )
                training.fit(
                    trainer,
                    LanguageModel(len(text.symbols)),
                    *loaders,
                    diverged=lambda metrics: metrics["val/bits_per_character"] > text.unigram_bits,
                    finish=finish,
                )
            for kind in seen.keys() - trained.keys():
                bench.add(Run(kind, seed, summary(seen[kind]) | {"val/bits_per_character": math.nan}))
    return study.finish(args)


def summary(cosines: list[float]) -> dict[str, float]:
    if not cosines:
        return {"cosine": math.nan, "lowest": math.nan}
    return {"cosine": statistics.fmean(cosines), "lowest": min(cosines)}


if __name__ == "__main__":
    studies.run(main)
