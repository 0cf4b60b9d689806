"""DeepDiagnosis, Wardat et al., ICSE 2022."""

from __future__ import annotations

from .conditions import BLOWING, DEAD, FADING, SLOW, STUCK, not_finite, unchanged, vanishing
from .watch import Look, PublishedRule


def dead_share(seen: list[Look]) -> bool:
    """70 % of a ReLU layer's outputs are zero."""
    return any(float((o <= 0).float().mean()) >= 0.7 for k, _, o in seen[-1].activations if k == "ReLU")


def saturated_inputs(seen: list[Look]) -> bool:
    """Half of what enters a tanh or sigmoid lies beyond five."""
    bounded = [before for kind, before, _ in seen[-1].activations if kind in ("Tanh", "Sigmoid")]
    return any(float((before.abs() > 5).float().mean()) > 0.5 for before in bounded)


def stands(seen: list[Look]) -> bool:
    """After ten looks accuracy is not above where it began; the loss not below, where there is none."""
    if len(seen) < 10:
        return False
    if seen[-1].accuracy is not None:
        return max(look.accuracy or 0.0 for look in seen[3:]) <= (seen[0].accuracy or 0.0)
    return min(look.loss for look in seen[3:]) >= seen[0].loss


RULES = [
    PublishedRule("numerical error", not_finite, BLOWING),
    PublishedRule("unchanged weights", unchanged, STUCK | FADING),
    PublishedRule("vanishing gradient", vanishing, FADING),
    PublishedRule("dead node", dead_share, DEAD),
    PublishedRule(
        "saturated activation", saturated_inputs, frozenset({"activations are saturated", "output is saturated"})
    ),
    PublishedRule("accuracy not increasing", stands, SLOW | {"rate too high"}),
]
