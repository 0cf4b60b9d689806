"""UMLAUT, Schoop et al., CHI 2021: heuristics about inputs, rates and losses, as far as a run shows them."""

from __future__ import annotations

import math

from .conditions import BLOWING
from .watch import Look, PublishedRule


def input_range(seen: list[Look]) -> bool:
    """Inputs far outside of what is normalized: beyond ten, read so that standardized data pass."""
    return seen[-1].inputs > 10


def rate_high(seen: list[Look]) -> bool:
    return seen[-1].rate > 0.01


def rate_low(seen: list[Look]) -> bool:
    return seen[-1].rate < 1e-7


def dropout_high(seen: list[Look]) -> bool:
    return seen[-1].dropout > 0.5


def no_better_than_chance(seen: list[Look]) -> bool:
    """Accuracy at the level of guessing after twenty looks."""
    accuracy = seen[-1].accuracy
    return len(seen) >= 20 and accuracy is not None and accuracy <= 0.2


RULES = [
    PublishedRule("loss is NaN", lambda seen: math.isnan(seen[-1].loss), BLOWING),
    PublishedRule(
        "input exceeds typical limits", input_range, frozenset({"input too large", "inputs differ in scale"})
    ),
    PublishedRule("learning rate is high", rate_high, frozenset({"rate too high"})),
    PublishedRule("learning rate is low", rate_low, frozenset({"rate too low", "rate is zero"})),
    PublishedRule("high dropout rate", dropout_high, frozenset({"too much regularization"})),
    PublishedRule("accuracy near chance", no_better_than_chance, frozenset()),
]
