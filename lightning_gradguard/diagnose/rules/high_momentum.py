"""A momentum that remembers longer than the run has lasted."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord

_USUAL = 0.9
_LONG = 0.998  # from which it is grave: five hundred steps


class HighMomentum(Rule):
    """The momentum is so near one that a step is the sum of hundreds of gradients of weights that are long gone.

    A momentum of m remembers ``1 / (1 - m)`` steps, and with SGD its steps grow to as many times the learning rate:
    0.9 stands for ten, 0.999 for a thousand. Weights then swing around where they should be for as long. Momentum so
    high was of use in runs of hundreds of thousands of steps (Sutskever et al. 2013): *info* while the loss falls.

    Args:
        momentum: of SGD, or the first beta of Adam and its kin, from which to speak up, in (0, 1). Recipes of published
            models go up to 0.99.

    Raises:
        ValueError: if ``momentum`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = HighMomentum()
        >>> rule.observe(quiet_record(0, momentum=0.9)) is None
        True
        >>> rule.observe(quiet_record(0, momentum=0.999)).message
        'the momentum is 0.999: each step is made of the gradients of the last 1000 steps; 0.9 is usual, for 10.'
    """

    id = "momentum-too-high"
    patience = 2
    harmless_if_learning = True
    needs = ("momentum",)

    def __init__(self, momentum: float = 0.994) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
        self.momentum = momentum

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        momentum = record.momentum
        assert momentum is not None
        if momentum <= self.momentum:
            return None
        remembers = f"the last {1 / (1 - momentum):.4g} steps" if momentum < 1 else "all steps so far"
        return Finding(
            rule=self.id,
            severity="critical" if momentum > _LONG else "warning",
            message=(
                f"the momentum is {momentum:g}: each step is made of the gradients of {remembers}; "
                f"{_USUAL:g} is usual, for 10."
            ),
            step=record.step,
            layers=record.layers,
            evidence={"momentum": momentum},
            causes=("the momentum is far too high for so short a run",),
            remedies=(f"{remedies.LOWER_MOMENTUM} to {_USUAL:g}",),
        )
