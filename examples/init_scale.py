"""How the scale of the weights decides what is left of the gradient at the first layer. Nothing is trained.

    python examples/init_scale.py                      # 20 tanh layers of 256 units, scales 0.5, 1.0, 1.5, Xavier, He
    python examples/init_scale.py --scalar --seeds 5   # the simulation that is often shown, as published and corrected
    python examples/init_scale.py --sigmoid --seeds 5  # ten sigmoid layers of 50 units: N(0, 1) is not the worst

A seed stands for 20 draws; the table shows the median of each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from harness import data, studies
from harness.report import Run, Study
from torch import Tensor, nn

DRAWS = 20


def chain(weights: Sequence[float], *, corrected: bool) -> list[float]:
    """Gradient at each layer of x <- tanh(w x), starting from x = 1, as the published simulation computes it.

    It multiplies by 1 - a[i]², the derivative at the *input* of layer i; right is 1 - a[i + 1]². Since the first input
    is 1, its gradient at layer 0 is exactly 0, whatever the weights are.
    """
    a = [1.0]
    for w in weights:
        a.append(math.tanh(w * a[-1]))
    gradient, gradients = 1.0, []
    for i in reversed(range(len(weights))):
        gradient *= weights[i] * (1 - a[i + 1 if corrected else i] ** 2)
        gradients.append(abs(gradient))
    return gradients[::-1]


def scalar(args: studies.Options) -> Study:
    study = Study(
        name="init_scale_scalar",
        question="20 tanh layers of one unit: what is left of the gradient at the first one?",
        metrics={"first": "gradient at layer 0", "exploded": "share above 1"},
        source="weights scale * N(0, 1); as published: one draw, NumPy's seed 42; corrected: median of 1,000 draws",
        command=args.command,
    )
    for scale in (0.5, 1.0, 1.5):
        drawn = np.random.RandomState(42).randn(20) * scale  # what the published figures were made with
        norms = chain(drawn, corrected=False)
        metrics = {"first": norms[0], "exploded": float(norms[0] > 1)}
        study.runs.append(Run(f"as published, scale {scale}", args.seed, metrics, depth=profile(norms)))
    for scale in (0.5, 1.0, 1.5):
        for seed in range(args.seed, args.seed + args.seeds):
            draws = np.random.default_rng(seed).standard_normal((1000, 20)) * scale
            norms = [chain(weights, corrected=True) for weights in draws]
            first = [norm[0] for norm in norms]
            metrics = {"first": statistics.median(first), "exploded": sum(g > 1 for g in first) / 1000}
            depth = profile([statistics.median(layer) for layer in zip(*norms, strict=True)])
            study.runs.append(Run(f"corrected, scale {scale}", seed, metrics, depth=depth))
    return study.finish(args)


def of_activations(layers: list[nn.Module], x: Tensor) -> list[float]:
    """Norm of the gradient at each layer's output, input first.

    The gradient that enters at the top is random: what happens to it on the way down is the stack's doing alone.
    """
    outputs = []
    for layer in layers:
        x = layer(x)
        x.retain_grad()
        outputs.append(x)
    x.backward(torch.randn_like(x))
    return [float(y.grad.norm()) for y in outputs]


def of_weights(layers: list[nn.Module], x: Tensor) -> list[float]:
    """Norm of the gradient of each layer's weights, input first: squared error against random targets."""
    out = nn.Sequential(*layers)(x)
    F.mse_loss(out, torch.randn_like(out)).backward()
    return [float(layer[0].weight.grad.norm()) for layer in layers]


def matrices(args: studies.Options) -> Study:
    def scaled(scale: float) -> Callable[[Tensor], object]:
        return lambda weight: nn.init.normal_(weight, std=scale / math.sqrt(weight.shape[1]))

    study = Study(
        name="init_scale",
        question="20 tanh layers of 256 units: what is left of the gradient at the first one?",
        metrics={"ratio": "first / last activation gradient"},
        source="weights N(0, scale² / n); 64 random inputs; float64",
        command=args.command,
    )
    inits: dict[str, Callable[[Tensor], object]] = {f"scale {scale}": scaled(scale) for scale in (0.5, 1.0, 1.5, 2.0)}
    inits |= {"Xavier, gain 5/3": lambda w: nn.init.xavier_normal_(w, gain=5 / 3), "He": nn.init.kaiming_normal_}
    inits["not scaled: N(0, 0.5²)"] = lambda w: nn.init.normal_(w, std=0.5)
    collect(
        study, args, inits, nn.Tanh, width=256, depth=20, batch=64, measure=of_activations, draws=2 if args.quick else 5
    )
    return study.finish(args)


def sigmoid(args: studies.Options) -> Study:
    study = Study(
        name="init_scale_sigmoid",
        question="Ten sigmoid layers of 50 units: first against last layer's weight gradient",
        metrics={"ratio": "first / last weight gradient"},
        source="16 random inputs, squared error against random targets; float64",
        command=args.command,
    )
    inits: dict[str, Callable[[Tensor], object]] = {
        "N(0, 1)": nn.init.normal_,
        "N(0, 0.01²)": lambda w: nn.init.normal_(w, std=0.01),
        "torch's default": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
        "Xavier": nn.init.xavier_normal_,
        "Xavier, gain 4": lambda w: nn.init.xavier_normal_(w, gain=4.0),
    }
    draws = 5 if args.quick else DRAWS
    collect(study, args, inits, nn.Sigmoid, width=50, depth=10, batch=16, measure=of_weights, draws=draws)
    normalized = {"BatchNorm, N(0, 1)": nn.init.normal_, "BatchNorm, Xavier": nn.init.xavier_normal_}
    collect(
        study, args, normalized, nn.Sigmoid, width=50, depth=10, batch=16, measure=of_weights, draws=draws, norm=True
    )
    return study.finish(args)


def collect(
    study: Study,
    args: studies.Options,
    inits: dict[str, Callable[[Tensor], object]],
    activation: type[nn.Module],
    *,
    width: int,
    depth: int,
    batch: int,
    measure: Callable[[list[nn.Module], Tensor], list[float]],
    draws: int,
    norm: bool = False,
) -> None:
    """Adds a run for every initialization and seed: the median over ``draws`` stacks."""
    for name, fill in inits.items():
        for seed in range(args.seed, args.seed + args.seeds):
            torch.manual_seed(seed)
            found = []
            for _ in range(draws):
                layers = []
                for _ in range(depth):
                    linear = nn.Linear(width, width, dtype=torch.float64)
                    fill(linear.weight)
                    nn.init.zeros_(linear.bias)
                    between = [nn.BatchNorm1d(width, dtype=torch.float64)] if norm else []
                    layers.append(nn.Sequential(linear, *between, activation()))
                found.append(measure(layers, torch.randn(batch, width, dtype=torch.float64)))
            norms = [statistics.median(layer) for layer in zip(*found, strict=True)]
            ratio = statistics.median(draw[0] / draw[-1] for draw in found)
            study.runs.append(Run(name, seed, {"ratio": ratio}, depth=profile(norms)))


def profile(norms: Sequence[float]) -> dict[str, float]:
    return {str(index): norm for index, norm in enumerate(norms)}


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=None, quick="fewer draws")
    parser.add_argument("--scalar", action="store_true", help="the published simulation with one unit a layer")
    parser.add_argument("--sigmoid", action="store_true", help="ten sigmoid layers of 50 units")
    args = studies.parse(parser, argv)
    if args.scalar and args.sigmoid:
        raise data.UsageError("--scalar and --sigmoid are different questions: choose one")
    return scalar(args) if args.scalar else sigmoid(args) if args.sigmoid else matrices(args)


if __name__ == "__main__":
    studies.run(main)
