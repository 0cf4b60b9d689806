"""AutoTrainer, Zhang et al., ICSE 2021: five problems, judged once a run has been seen and does not converge."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .conditions import BLOWING, DEAD, FADING, SLOW, STUCK
from .watch import Look, PublishedRule


def _not_converging(seen: list[Look]) -> bool:
    """Accuracy below 0.6; where there is none, a loss that fell by less than 40 %."""
    if not seen[-1].finite:
        return True
    if seen[-1].accuracy is not None:
        return max(look.accuracy or 0.0 for look in seen) < 0.6
    return seen[-1].loss > seen[0].loss - 0.4 * abs(seen[0].loss)


def _kernels(look: Look) -> list[float]:
    return [float(g.norm()) for g in look.gradients.values() if g.dim() > 1]


def _at_the_end(fires: Callable[[list[Look]], bool]) -> Callable[[list[Look]], bool]:
    return lambda seen: (len(seen) >= 24 or not seen[-1].finite) and _not_converging(seen) and fires(seen)


def vanishing(seen: list[Look]) -> bool:
    norms = _kernels(seen[-1])
    return len(norms) > 1 and norms[0] < 1e-4 and norms[0] < 1e-3 * norms[-1]


def exploding(seen: list[Look]) -> bool:
    norms = _kernels(seen[-1])
    return not seen[-1].finite or (len(norms) > 1 and norms[0] > 70 * norms[-1])


def dying(seen: list[Look]) -> bool:
    """70 % of all gradients are zero."""
    every = torch.cat([g.flatten() for g in seen[-1].gradients.values()] or [torch.ones(1)])
    return float((every == 0).float().mean()) >= 0.7


def oscillating(seen: list[Look]) -> bool:
    """Accuracy swings by 0.03 within three looks, in a fifth of them."""
    accuracies = [look.accuracy for look in seen if look.accuracy is not None]
    swings = [max(accuracies[i : i + 3]) - min(accuracies[i : i + 3]) >= 0.03 for i in range(len(accuracies) - 2)]
    return bool(swings) and sum(swings) >= 0.2 * len(swings)


def slow(seen: list[Look]) -> bool:
    """Accuracy has grown by less than 0.01."""
    accuracies = [look.accuracy for look in seen if look.accuracy is not None]
    return bool(accuracies) and max(accuracies) - accuracies[0] < 0.01


RULES = [
    PublishedRule("vanish", _at_the_end(vanishing), FADING),
    PublishedRule("explode", _at_the_end(exploding), BLOWING),
    PublishedRule("dying ReLU", _at_the_end(dying), DEAD),
    PublishedRule("slow convergence", _at_the_end(slow), SLOW | STUCK),
    PublishedRule("oscillation", _at_the_end(oscillating), frozenset({"rate too high"})),
]
