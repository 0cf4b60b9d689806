"""A loss that is maximized by mistake."""

from __future__ import annotations

import math

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.record import Finding, StepRecord


class WrongSign(Rule):
    """The optimizer climbs a loss that should fall, or the loss falls below zero without end.

    Three signs, of which the last two end in a run that breaks:

    - the optimizer is set to ``maximize``, and the loss, which is positive, stays or rises with its gradient;
    - the loss was negative from the first record, has grown to ``factor`` times its first size, and the gradient to
      ``factor`` times its smallest. A loss with a floor slows down as it nears it, this one does not;
    - it began above zero, fell below by as much as three times its first size, and falls faster and faster while the
      gradient grows.

    Losses of densities may be negative as well, but they slow down. Not asked with several optimizers, where a
    critic's loss may do so.

    Args:
        factor: growth of loss and gradient, > 1. 3 is out of reach for a loss that only converges below zero.

    Raises:
        ValueError: if ``factor`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = WrongSign()
        >>> rule.observe(quiet_record(0, loss=-1.0)) is None
        True
        >>> rule.observe(quiet_record(1, loss=-8.0, total_norm=2.5)).message
        'the loss began at -1 and fell to -8 without slowing down, while the gradient norm grew from 0.25 to 2.5.'
    """

    id = "wrong-sign"
    patience = 2
    needs = ("loss",)
    sees_bad_steps = True

    def __init__(self, factor: float = 3.0) -> None:
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}")
        self.factor = factor
        self._first: float | None = None
        self._smallest = math.inf
        self._progress = Progress()
        self._last: list[tuple[int, float]] = []  # step and loss of the last three records

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.loss is not None
        self._progress.add(record)
        if self._first is None:
            self._first = record.loss
        finite = math.isfinite(record.loss) and math.isfinite(record.total_norm)
        if finite:
            self._smallest = min(self._smallest, record.total_norm)
            self._last = [*self._last[-2:], (record.step, record.loss)]
        if record.num_optimizers > 1:
            return None
        grew = not finite or record.total_norm > self.factor * self._smallest
        state = self._progress.state
        if record.maximizes and self._first > 0 and (state == "stalls" or (state == "rises" and grew)):
            return self._finding(record, "rose", "the optimizer is set to maximize")
        if self._first < 0 and grew and (not finite or record.loss < self.factor * self._first):
            return self._finding(record, "fell", "the loss has the wrong sign")
        below = record.loss < -self.factor * abs(self._first) or not finite
        if self._first >= 0 and self._last[-1:] and self._last[-1][1] < 0 and below and grew and self._faster():
            return self._finding(record, "fell", "the loss has the wrong sign")
        return None

    def _faster(self) -> bool:
        """Whether the loss fell by more a step in the last stretch than in the one before."""
        if len(self._last) < 3:
            return False
        (a, x), (b, y), (c, z) = self._last
        return (y - z) / max(1, c - b) > (x - y) / max(1, b - a) > 0

    def _finding(self, record: StepRecord, moved: str, cause: str) -> Finding:
        return Finding(
            rule=self.id,
            severity="critical",
            message=(
                f"the loss began at {self._first:.3g} and {moved} to {record.loss:.3g} without slowing down, while the "
                f"gradient norm grew from {self._smallest:.3g} to {record.total_norm:.3g}."
            ),
            step=record.step,
            layers=record.layers,
            evidence={"first_loss": self._first or 0.0, "smallest_norm": self._smallest},
            causes=(cause, "a loss that has no lower bound"),
            remedies=(remedies.FLIP_SIGN,),
        )
