"""What several of the published rule sets ask."""

from __future__ import annotations

import torch

from .watch import Look

# The causes that a rule of such a name would lead a user to.
TOO_SMALL = frozenset(
    {"weights begin too small", "weights begin at zero", "gradient vanishes over depth", "input too small"}
)
FADING = TOO_SMALL | {
    "gradient vanishes over time",
    "float16 underflows",
    "units are dead",
    "activations are saturated",
    "output is saturated",
    "attention is saturated",
}
BLOWING = frozenset(
    {
        "weights begin too large",
        "signal explodes over depth",
        "gradient explodes over time",
        "input too large",
        "targets too large",
        "rate too high",
        "loss is maximized",
        "loss has no floor",
        "gradients are never cleared",
        "a step is not finite",
        "batches are bad",
    }
)
SLOW = frozenset({"rate too low", "rate is zero", "rate decays too early", "clipping rules"})
STUCK = SLOW | {
    "frozen by mistake",
    "graph is cut",
    "parameters in no optimizer",
    "optimizer holds other parameters",
    "step is never called",
    "a part starves",
}
DEAD = frozenset({"units are dead", "weights begin at zero"})


def mean_abs(look: Look) -> list[float]:
    return [float(g.abs().mean()) for g in look.gradients.values()]


def vanishing(seen: list[Look]) -> bool:
    """Mean absolute gradient of some tensor below 1e-7."""
    return any(m < 1e-7 for m in mean_abs(seen[-1]))


def not_finite(seen: list[Look]) -> bool:
    return not seen[-1].finite


def unchanged(seen: list[Look]) -> bool:
    """Some tensor the same over three looks in a row."""
    if len(seen) < 3:
        return False
    a, b, c = (look.weights for look in seen[-3:])
    return any(torch.allclose(a[n], b[n]) and torch.allclose(b[n], c[n]) for n in c if n in a and n in b)
