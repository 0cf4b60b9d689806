"""A part that gets far less gradient than its siblings."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import gradient_profile, weight_layers
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord


class StarvingPart(Rule):
    """Of several parts with the same structure one gets next to no gradient: an expert, a task's head, a tower.

    Parts are siblings if their names differ in one place only and their parameters have the same shapes. A gradient
    that fades over depth starves blocks as well; that is for the rule on depth to say. While the loss falls it is a
    fact, *info*: sparse experts are chosen unevenly and train all the same.

    Args:
        ratio: gradient over the median one of its siblings, in (0, 1).

    Raises:
        ValueError: if ``ratio`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule, layers = StarvingPart(), ("experts.0", "experts.1", "experts.2", "head")
        >>> rule.observe(quiet_record(0, layers=layers, layer_norms=(0.1, 0.2, 0.1, 0.3))) is None
        True
        >>> rule.observe(quiet_record(0, layers=layers, layer_norms=(0.1, 0.2, 1e-6, 0.3))).message
        'experts.2 gets 7e-06 of the gradient of its 2 siblings.'
    """

    id = "starving-part"
    patience = 4
    harmless_if_learning = True

    def __init__(self, ratio: float = 1e-3) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, got {ratio}")
        self.ratio = ratio

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        line = gradient_profile(record).line
        if line is not None and line.is_certain and abs(line.decades) > 2:
            return None
        starving: list[tuple[float, int, str]] = []
        for members in _siblings(record).values():
            norms = {i: record.max_layer_norms[i] or 0.0 for i in members}
            for i in members:
                others = statistics.median(norm for j, norm in norms.items() if j != i)
                if others > 0 and norms[i] < self.ratio * others:
                    starving.append((norms[i] / others, len(members) - 1, record.layers[i]))
        if not starving:
            return None
        worst, number, _ = min(starving)
        names = tuple(dict.fromkeys(name for _, _, name in starving))
        gets = "gets" if len(names) == 1 else "get"
        siblings = "sibling" if number == 1 else f"{number} siblings"
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{named(names)} {gets} {worst:.1g} of the gradient of its {siblings}.",
            step=record.step,
            layers=names,
            evidence={"ratio": worst, "siblings": float(number)},
            causes=("its loss has a tiny weight", "nothing is routed to it", "its input is scaled down"),
            remedies=(remedies.BALANCE,),
        )


def _siblings(record: StepRecord) -> dict[tuple[str, str], list[int]]:
    """Layers whose names differ in one place only and whose shapes are the same, two or more."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    shapes = record.layer_shapes or ("",) * len(record.layers)
    for i in weight_layers(record):
        if record.trainable is not None and not record.trainable[i]:
            continue
        parts = record.layers[i].split(".")
        for place in range(len(parts)):
            if place < len(parts) - 1 or not re.fullmatch(r"fc\d*|linear\d*|conv\d*|layer\d*", parts[place]):
                groups[".".join([*parts[:place], "*", *parts[place + 1 :]]), shapes[i]].append(i)
    return {key: members for key, members in groups.items() if len(members) > 1}
