"""Units that are all the same."""

from __future__ import annotations

import math

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord

_STILL = 100.0  # times the spread up to which units that began alike still act as one: the layer behind parts them


class IdenticalUnits(Rule):
    """All units of a hidden layer put out the same number: they get the same gradient, and stay one unit.

    Only a start can bring that about. A layer whose output is the same for all samples gets nothing from the one before
    it: what is left are its biases, and that they are alike is no finding.

    Args:
        spread: largest difference between units over the output's root mean square, in (0, 1).

    Raises:
        ValueError: if ``spread`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> IdenticalUnits().observe(quiet_record(0, activations=(quiet_activation("a", unit_spread=2.0),))) is None
        True
        >>> IdenticalUnits().observe(quiet_record(0, activations=(quiet_activation("a", unit_spread=0.0),))).message
        'a: all units put out the same, so they get the same gradient and act as one.'
    """

    id = "identical-units"
    patience = 2
    needs = ("activations",)

    def __init__(self, spread: float = 1e-4) -> None:
        if not 0 < spread < 1:
            raise ValueError(f"spread must lie between 0 and 1, got {spread}")
        self.spread = spread
        self._from_the_start: bool | None = None

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        same = tuple(
            a.module
            for a in record.activations or ()
            if a.unit_spread is not None
            and a.unit_spread < self.spread * (_STILL if self._from_the_start else 1.0)
            and 0 < a.rms < math.inf
            and a.sample_spread != 0
        )
        if self._from_the_start is None:
            self._from_the_start = bool(same)
        if not same or not self._from_the_start:
            return None
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"{named(same)}: all units put out the same, so they get the same gradient and act as one.",
            step=record.step,
            layers=same,
            evidence={"layers": float(len(same))},
            causes=("weights were initialized with one constant",),
            remedies=(remedies.AS_DRAWN,),
        )
