"""Amazon SageMaker Debugger: its built-in rules at their documented defaults of 2023."""

from __future__ import annotations

import torch

from .conditions import BLOWING, DEAD, FADING, SLOW, STUCK, not_finite, unchanged, vanishing
from .watch import Look, PublishedRule


def dead_relu(seen: list[Look]) -> bool:
    """A layer in which more than 50 % of the ReLUs are active in less than 1 % of the samples."""
    for kind, _, output in seen[-1].activations:
        if kind == "ReLU":
            active = (output.flatten(1) > 0).float().mean(0)
            if float((active < 0.01).float().mean()) > 0.5:
                return True
    return False


def saturated(seen: list[Look]) -> bool:
    """More than 50 % of a layer's units with less than 1 % of inputs inside the useful range."""
    bounds = {"Tanh": (-9.4999, 9.4999), "Sigmoid": (-23.0, 16.99999)}
    for kind, before, _ in seen[-1].activations:
        if kind in bounds:
            low, high = bounds[kind]
            inside = ((before > low) & (before < high)).float().flatten(1).mean(0)
            if float((inside < 0.01).float().mean()) > 0.5:
                return True
    return False


def update_ratio(seen: list[Look]) -> bool:
    """The weight change between two looks over the weights is below 1e-8 or above 10 for some tensor."""
    if len(seen) < 2 or not (seen[-1].finite and seen[-2].finite):
        return False
    before = seen[-2].weights
    ratios = [float((w - before[n]).norm() / (before[n].norm() + 1e-9)) for n, w in seen[-1].weights.items()]
    return max(ratios) > 10.0 or min(ratios) < 1e-8


def all_zero(seen: list[Look]) -> bool:
    return any(not bool(g.any()) for g in seen[-1].gradients.values())


def poor_initialization(seen: list[Look]) -> bool:
    """In the first ten steps: variances of layers' weights differ tenfold, or gradients span less than 0.001."""
    if seen[-1].step > 10 or not seen[-1].finite or not seen[-1].gradients:
        return False
    variances = [float(w.var()) for w in seen[-1].weights.values() if w.dim() > 1]
    every = torch.cat([g.flatten() for g in seen[-1].gradients.values()])[:1_000_000]
    span = float(torch.quantile(every, 0.95) - torch.quantile(every, 0.05))
    return max(variances, default=1.0) > 10 * min(variances, default=1.0) or span < 1e-3


def loss_not_decreasing(seen: list[Look]) -> bool:
    """Less than 0.1 % fall over two looks."""
    return len(seen) > 2 and seen[-1].loss > seen[-3].loss - 1e-3 * abs(seen[-3].loss)


TENSOR_RULES = [
    PublishedRule("VanishingGradient", vanishing, FADING),
    PublishedRule("ExplodingTensor", not_finite, BLOWING),
    PublishedRule("DeadRelu", dead_relu, DEAD),
    PublishedRule("SaturatedActivation", saturated, frozenset({"activations are saturated", "output is saturated"})),
    PublishedRule("WeightUpdateRatio", update_ratio, frozenset({"rate too high"}) | STUCK),
    PublishedRule("AllZero", all_zero, FADING),
    PublishedRule("UnchangedTensor", unchanged, STUCK | FADING),
]
ALL_RULES = [
    *TENSOR_RULES,
    PublishedRule("PoorWeightInitialization", poor_initialization, FADING | {"weights begin too large"}),
    PublishedRule("LossNotDecreasing", loss_not_decreasing, SLOW | BLOWING),
]
