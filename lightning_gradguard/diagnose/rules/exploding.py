"""Gradients that grow on the way back to the input."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import gradient_profile, has_norms, missing_norms
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class ExplodingOverDepth(Rule):
    """Early layers get a far larger gradient than late ones.

    The same line as in vanishing, sloped the other way: it rises by ``decades`` from the last layer back to the
    first, straight and with a slope at least three standard errors away from level.

    A layer multiplies the gradient by its weights, so that weights smaller by what the gradient grows from one layer to
    the next make it level, whatever the activation is: He's and Xavier's initializations follow from the same.

    Args:
        decades: rise over the whole depth, in powers of ten, > 0.

    Raises:
        ValueError: if ``decades`` is not positive.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = ExplodingOverDepth()
        >>> rule.observe(quiet_record(0)) is None
        True
        >>> rule.observe(quiet_record(0, layer_norms=tuple(10.0**-i for i in range(6)))).layers
        ('a',)
    """

    id = "exploding-over-depth"
    harmless_if_learning = True

    def __init__(self, decades: float = 2.5) -> None:
        if not decades > 0:
            raise ValueError(f"decades must be positive, got {decades}")
        self.decades = decades

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        profile = gradient_profile(record)
        line = profile.line
        if line is None or not line.is_straight or -line.decades < self.decades:
            return None
        times = 10**-line.slope
        strong = max(profile.values) * 1e-1
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the gradient grows by {-line.decades:.1f} decades from the last layer back to the first "
                f"({-line.slope:.2f} ± {line.error:.2f} a layer)."
            ),
            step=record.step,
            layers=tuple(n for n, v in zip(profile.layers, profile.values, strict=True) if v > strong),
            evidence={"decades": -line.decades, "slope": -line.slope, "slope_error": line.error, "divide_by": times},
            causes=("the initial weights are too large", *missing_norms(record)),
            remedies=(
                remedies.smaller_weights(times),
                *remedies.for_scale(deep_and_bare=False, normalizes=has_norms(record)),
            ),
        )
