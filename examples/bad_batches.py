"""Rare bad batches in an otherwise healthy training: what an adaptive threshold is for.

Every 50th batch was forgotten by the preprocessing: its pixels are not divided by 255. A fixed threshold that is low
enough to survive it clips most healthy steps too; an adaptive one clips the bad ones. Trains twice, without and with
the mitigation:

    python examples/bad_batches.py
    python examples/bad_batches.py --clip norm --max-norm 1
    python examples/bad_batches.py --compare --seeds 5
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning as L
import torch
from harness import data, studies
from harness.mlp import MLP
from harness.report import Study
from torch import Tensor

from lightning_gradguard import (
    AdaptiveGradientClipping,
    AutoClip,
    ClipPolicy,
    GradientNormMonitor,
    NormClip,
    ValueClip,
    ZClip,
)


class WithBadBatches:
    """Batches of an ordinary loader, every ``every``-th of the run multiplied by ``factor``."""

    def __init__(self, loader: torch.utils.data.DataLoader, *, every: int, factor: float) -> None:
        self.loader, self.every, self.factor = loader, every, factor
        self._count = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for x, y in self.loader:
            self._count += 1
            yield [x if self._count % self.every else x * self.factor, y]


def policies(max_norm: float | None) -> dict[str, ClipPolicy]:
    ceiling = {} if max_norm is None else {"max_norm": max_norm}
    return {
        "zclip": ZClip(**ceiling),
        "autoclip": AutoClip(**ceiling),
        "norm": NormClip(**({"max_norm": 1.0} | ceiling)),
        "value": ValueClip(0.01),
    }


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=20, quick="8 epochs instead of 20", data_dir=True)
    parser.add_argument("--clip", choices=list(policies(None)), help="default: zclip")
    parser.add_argument("--max-norm", type=float, help="ceiling of the gradient norm (norm: 1; adaptive: none)")
    parser.add_argument("--every", type=int, default=50, help="one bad batch in so many (default: 50)")
    parser.add_argument("--factor", type=float, default=255.0, help="what a bad batch is multiplied by (default: 255)")
    parser.add_argument("--lr", type=float, default=0.05)
    args = studies.parse(parser, argv, quick_epochs=8)
    if args.compare and (args.clip or args.max_norm is not None):
        raise data.UsageError("--compare brings its own policies: leave out --clip and --max-norm")
    if args.clip == "value" and args.max_norm is not None:
        raise data.UsageError("--max-norm does nothing with --clip value")
    if args.every < 1:
        raise data.UsageError(f"--every must be at least 1, got {args.every}")
    try:
        known = policies(args.max_norm)
    except ValueError as error:
        raise data.UsageError(str(error)) from error
    chosen = list(known) if args.compare else [args.clip or "zclip"]
    variants: dict[str, ClipPolicy | None] = {"no clipping": None, **{name: known[name] for name in chosen}}
    if args.compare:
        variants = {"no bad batches": None} | variants

    images = data.images(args.data_dir).standardized()
    study = Study(
        name="bad_batches",
        question=f"One batch in {args.every} is {args.factor:g} times too large: does the network learn?",
        metrics={"test/accuracy": "test accuracy"},
        source=images.source,
        command=args.command,
    )
    with studies.Bench(study, args, len(variants) * args.seeds) as bench:
        for name, policy in variants.items():
            factor = 1.0 if name == "no bad batches" else args.factor
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                loader = data.batches(images.train_x, images.train_y, size=64, shuffle=True, drop_last=True)
                training = bench.begin(name, seed)
                trainer = L.Trainer(
                    callbacks=[
                        *([AdaptiveGradientClipping(policy)] if policy else []),
                        GradientNormMonitor(rules=training.rules, sinks=[training.memory]),
                        *training.callbacks,
                    ],
                    **training.quiet,
                )
                training.fit(
                    trainer,
                    MLP(images.num_pixels, depth=5, init="he", lr=args.lr, momentum=0.9),
                    WithBadBatches(loader, every=args.every, factor=factor),
                    data.batches(images.test_x, images.test_y, size=1000),
                    diverged=lambda metrics: metrics["test/accuracy"] < 0.2,
                    hparams={"lr": args.lr, "factor": factor},
                )
    return study.finish(args)


if __name__ == "__main__":
    studies.run(main)
