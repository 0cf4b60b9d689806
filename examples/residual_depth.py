"""Residual connections against plain depth: 20, 50 and 100 layers.

Fully connected ReLU layers with PyTorch's default initialization, SGD 0.01. Trains twice:

    python examples/residual_depth.py
    python examples/residual_depth.py --depth 50                 # residual connections alone explode here
    python examples/residual_depth.py --depth 50 --norm batch
    python examples/residual_depth.py --compare --seeds 5
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from harness import data, studies
from harness.mlp import INITS, MLP
from harness.report import Study

from lightning_gradguard import GradientNormMonitor

Variants = dict[str, dict[str, object]]


def pair(depth: int) -> Variants:
    return {f"{depth} plain": {"depth": depth}, f"{depth} residual": {"depth": depth, "residual": True}}


def every_variant() -> Variants:
    made: Variants = {}
    for depth in (20, 50, 100):
        made |= pair(depth)
        made[f"{depth} BatchNorm"] = {"depth": depth, "norm": True}
        made[f"{depth} residual + BatchNorm"] = {"depth": depth, "norm": True, "residual": True}
    return made


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=40, quick="25 epochs instead of 40", data_dir=True)
    parser.add_argument("--depth", type=int, help="hidden layers (default: 20)")
    parser.add_argument("--norm", choices=["none", "batch"], default="none", help="beside the residual connections")
    parser.add_argument("--init", choices=list(INITS), default="torch")
    parser.add_argument("--lr", type=float, default=0.01)
    args = studies.parse(parser, argv, quick_epochs=25)
    if args.compare and (args.depth is not None or args.norm != "none"):
        raise data.UsageError("--compare brings its own depths and norms: leave out --depth and --norm")
    depth = 20 if args.depth is None else args.depth
    if depth < 2:
        raise data.UsageError(f"--depth must be at least 2, got {depth}")
    variants = pair(depth)
    if args.norm == "batch":
        variants[f"{depth} residual + BatchNorm"] = {"depth": depth, "norm": True, "residual": True}
    if args.compare:
        variants = every_variant()

    images = data.images(args.data_dir).standardized()
    study = Study(
        name="residual_depth",
        question=f"How deep can a plain ReLU network be, SGD {args.lr:g}, {args.init} initialization?",
        metrics={"test/accuracy": "test accuracy", "epochs": "epochs to 90 %"},
        source=images.source,
        command=args.command,
    )
    with studies.Bench(study, args, len(variants) * args.seeds) as bench:
        for name, options in variants.items():
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                training = bench.begin(name, seed, reach=("test/accuracy", 0.9))
                trainer = L.Trainer(
                    callbacks=[
                        GradientNormMonitor(rules=training.rules, sinks=[training.memory]),
                        *training.callbacks,
                    ],
                    **training.quiet,
                )
                training.fit(
                    trainer,
                    MLP(images.num_pixels, lr=args.lr, init=args.init, **options),
                    data.batches(images.train_x, images.train_y, size=64, shuffle=True, drop_last=True),
                    data.batches(images.test_x, images.test_y, size=1000),
                    depth=lambda layer: layer.endswith("linear"),
                    diverged=lambda metrics: metrics["test/accuracy"] < 0.2,
                    hparams=options | {"lr": args.lr, "init": args.init},
                )
    return study.finish(args)


if __name__ == "__main__":
    studies.run(main)
