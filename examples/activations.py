"""Sigmoid against ReLU and the others: how fast a network learns, how far, and with which initialization.

The same fully connected network (64 units a layer) under SGD, nothing but the activation and the initialization
changes. Trains twice, with sigmoid and with ReLU:

    python examples/activations.py                       # 5 hidden layers, each with its own initialization
    python examples/activations.py --activation tanh --init xavier --depth 10
    python examples/activations.py --compare --seeds 5   # 5 activations x 2 initializations x depth 2, 5, 10
    python examples/activations.py --matched --seeds 5   # 20 layers: Xavier for tanh, He for ReLU, and swapped
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from harness import data, studies
from harness.mlp import ACTIVATIONS, INITS, MLP
from harness.report import Study

from lightning_gradguard import GradientNormMonitor

Variants = dict[str, dict[str, object]]


def name_of(activation: str, init: str, depth: int) -> str:
    return f"{depth} layers, {activation}, {init}"


def every_variant() -> Variants:
    """Each activation with the default initialization of its layers, and with the one that was made for it."""
    made_for = {"sigmoid": "xavier", "tanh": "xavier", "relu": "he", "leaky_relu": "he", "silu": "he"}
    return {
        name_of(activation, init, depth): {"activation": activation, "init": init, "depth": depth}
        for depth in (2, 5, 10)
        for activation in ACTIVATIONS
        for init in ("torch", made_for[activation])
    }


def matched() -> Variants:
    """Initialization made for the activation, and for the other one."""
    return {
        name_of(activation, init, 20): {"activation": activation, "init": init, "depth": 20, "lr": 0.01}
        for activation in ("relu", "tanh")
        for init in ("xavier", "he")
    }


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=40, quick="12 epochs instead of 40", data_dir=True)
    parser.add_argument("--activation", choices=list(ACTIVATIONS), help="beside sigmoid (default: relu)")
    parser.add_argument("--init", choices=list(INITS), help="of that one (default: he)")
    parser.add_argument("--depth", type=int, help="hidden layers (default: 5)")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--matched", action="store_true", help="20 layers, SGD 0.01: matched initialization or not")
    args = studies.parse(parser, argv, quick_epochs=12)
    if (args.compare or args.matched) and (
        args.activation or args.init or args.depth is not None or (args.compare and args.matched)
    ):
        raise data.UsageError("--compare and --matched bring their own variants: leave out the other switches")
    depth = 5 if args.depth is None else args.depth
    if depth < 1:
        raise data.UsageError(f"--depth must be at least 1, got {depth}")
    if not 0 <= args.momentum < 1:
        raise data.UsageError(f"--momentum must be at least 0 and below 1, got {args.momentum:g}")
    chosen = {"activation": args.activation or "relu", "init": args.init or "he", "depth": depth}
    variants: Variants = {
        name_of("sigmoid", "torch", depth): {"activation": "sigmoid", "init": "torch", "depth": depth},
        name_of(*chosen.values()): chosen,
    }
    if args.compare or args.matched:
        variants = every_variant() if args.compare else matched()

    images = data.images(args.data_dir).standardized()
    study = Study(
        name="activations_matched" if args.matched else "activations",
        question="20 layers: does the initialization match the activation?"
        if args.matched
        else f"Which activation learns, SGD {args.lr:g}, 64 units a layer?",
        metrics={"test/accuracy": "test accuracy", "epochs": "epochs to 90 %"},
        source=images.source,
        command=args.command,
    )
    with studies.Bench(study, args, len(variants) * args.seeds) as bench:
        for name, options in variants.items():
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                settings = {"lr": args.lr, "momentum": args.momentum} | options
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
                    MLP(images.num_pixels, **settings),
                    data.batches(images.train_x, images.train_y, size=64, shuffle=True, drop_last=True),
                    data.batches(images.test_x, images.test_y, size=1000),
                    diverged=lambda metrics: metrics["test/accuracy"] < 0.2,
                    hparams=settings,
                )
    return study.finish(args)


if __name__ == "__main__":
    studies.run(main)
