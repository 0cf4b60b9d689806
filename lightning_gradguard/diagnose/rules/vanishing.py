"""Gradients that fade on the way back to the input."""

from __future__ import annotations

import math
import statistics

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import Profile, gradient_profile, has_norms, missing_norms, relative_profile
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord

_NOTHING = 1e-5  # of it that is as good as none, in a net of so few layers that no line can be drawn
_REACHED = 1e-3  # of the strongest gradient from which it has reached the first layer


class VanishingOverDepth(Rule):
    """Early layers get next to no gradient, or all hidden layers do.

    Over the layers in the order of the forward pass a line is fitted through log10 of the root mean square gradient;
    ``decades`` is what it falls from the last layer back to the first, with a slope at least three standard errors
    away from level, and with half of what layers differ by along the line: gradients fade in a chain, not among gates
    and branches that stand beside each other. A network can be dead without a slope, since activations may fade as
    gradients do: so the level counts as well, when the median layer's gradient-to-weight ratio is ``level`` times that
    of the best layer, and the first layer gets next to no gradient either: where it gets one, branches merely begin
    small, as under layer scale.

    Both are ratios within the network: they do not depend on loss scale or batch size.

    Args:
        decades: fall over the whole depth, in powers of ten, > 0.
        level: median over best gradient-to-weight ratio, in (0, 1).

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = VanishingOverDepth()
        >>> rule.observe(quiet_record(0)) is None
        True
        >>> fading = rule.observe(quiet_record(0, layer_norms=tuple(10.0**-i for i in range(6, 0, -1))))
        >>> fading.layers, round(fading.evidence["decades"], 3)
        (('a', 'b'), 5.0)
    """

    id = "vanishing-over-depth"
    harmless_if_learning = True

    def __init__(self, decades: float = 2.5, level: float = 1e-4) -> None:
        if not decades > 0:
            raise ValueError(f"decades must be positive, got {decades}")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        self.decades, self.level = decades, level

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        profile = gradient_profile(record)
        line = profile.line
        if line is None:
            return self._of_few(record, profile)
        relative = relative_profile(record).values
        level = statistics.median(relative) / max(relative) if relative else 1.0
        sloped = line.is_straight and line.decades > self.decades
        reaches_back = profile.values[0] > _REACHED * max(profile.values)
        if not sloped and (level > self.level or reaches_back):
            return None
        half = max(profile.values) * _REACHED
        faint = tuple(name for name, value in zip(profile.layers, profile.values, strict=True) if value < half)
        what = (
            f"the gradient falls by {line.decades:.1f} decades from the last layer back to the first "
            f"({line.slope:.2f} ± {line.error:.2f} a layer)"
            if sloped
            else f"the median layer's gradient-to-weight ratio is {level:.1g} of the best layer's"
        )
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"{what}; {len(faint)} of {len(profile.layers)} layers get below a thousandth of the strongest.",
            step=record.step,
            layers=faint,
            evidence={**line.as_evidence(), "level": level, "log10_first": math.log10(profile.values[0])},
            causes=(
                "the initial weights are too small for the activation",
                *missing_norms(record),
                "a saturating activation",
            ),
            remedies=(
                *remedies.for_scale(deep_and_bare=True, normalizes=has_norms(record)),
                remedies.RESIDUAL,
                remedies.OTHER_ACTIVATION,
            ),
        )

    def _of_few(self, record: StepRecord, profile: Profile) -> Finding | None:
        """Of two or three layers with weights the first gets nothing to speak of."""
        if len(profile.values) < 2 or profile.values[0] > _NOTHING * max(profile.values):
            return None
        share = profile.values[0] / max(profile.values)
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"{profile.layers[0]} gets {share:.1g} of the strongest layer's gradient: next to nothing.",
            step=record.step,
            layers=profile.layers[:1],
            evidence={"share": share},
            causes=("units behind it never fire, or are saturated", "a tiny factor between the layers"),
            remedies=(remedies.OTHER_ACTIVATION, remedies.INIT_NORMAL),
        )
