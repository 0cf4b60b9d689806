"""A loss that is maximized by mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.rules.double_activation import is_of_no_probabilities, is_overlap
from lightning_gradguard.record import Finding, StepRecord

_SAME = 1e-3  # by which the loss may differ in size from what a loss function gave, to be that
_OUTSIDE = 0.01  # by which a target must lie outside of 0 to 1: smoothing and rounding stay within
_TWICE = 1.9  # times as many steps make another stretch; records come at 2^k and at every 50th step
_FASTER = 1.5


class WrongSign(Rule):
    """The optimizer climbs a loss that should fall, or the loss falls below zero without end.

    Certain at once:

    - what is back-propagated is the negative of what a loss function gave, and such a loss is never below zero;
    - the loss is made of the overlap with the targets alone (Dice, Jaccard, Tversky), and rises with it;
    - the targets of a binary cross-entropy, or of such an overlap, lie outside of 0 to 1.

    Certain after a while:

    - the optimizer is set to ``maximize``, and the loss, which is positive, stays or rises with its gradient;
    - the loss is below zero by ``depth`` times its first size or of one, the gradient has grown to ``factor`` times its
      smallest, and from doubling to doubling of the steps the loss falls faster. One with a floor slows
      down as it nears it; that of a density falls in proportion to the steps at most, while its spread shrinks.

    The last two are not asked with several optimizers, where a critic's loss may do so.

    Args:
        factor: growth of the gradient, > 1.
        depth: times its first size by which the loss is below zero, > 1. 10 is out of reach for a density.

    Raises:
        ValueError: if ``factor`` or ``depth`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = WrongSign()
        >>> rule.observe(quiet_record(0, loss=-2.3)) is None
        True
        >>> from lightning_gradguard.record import LossStats
        >>> rule.observe(quiet_record(1, loss=-2.3, losses=(LossStats("cross-entropy", 2.2, False, 2.3),))).message
        'what is back-propagated, -2.3, is the negative of the cross-entropy.'
    """

    id = "wrong-sign"
    patience = 2
    needs = ("loss",)
    sees_bad_steps = True

    def __init__(self, factor: float = 3.0, depth: float = 10.0) -> None:
        for name, value in (("factor", factor), ("depth", depth)):
            if not value > 1:
                raise ValueError(f"{name} must be above 1, got {value}")
        self.factor, self.depth = factor, depth
        self._first: float | None = None
        self._smallest = math.inf
        self._progress = Progress()
        self._sure: Finding | None = None
        self._raw = False
        self._marks: list[tuple[int, float]] = []  # steps and the loss then, each after twice as many steps

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.loss is not None
        self._progress.add(record)
        if self._first is None:
            self._first = record.loss
        finite = math.isfinite(record.loss) and math.isfinite(record.total_norm)
        if finite:
            self._smallest = min(self._smallest, record.total_norm)
            if not self._marks or self._progress.steps >= _TWICE * self._marks[-1][0]:
                self._marks = [*self._marks[-3:], (self._progress.steps, self._progress.now)]
        if any(given.raw or is_of_no_probabilities(given) for given in record.losses or ()):
            self._raw = True  # it has no floor for another reason, which has a rule of its own
        self._sure = self._sure or self._certain(record)
        if self._sure is not None:
            return self._sure
        if record.num_optimizers > 1 or self._raw:
            return None
        grew = not finite or record.total_norm > self.factor * self._smallest
        state = self._progress.state
        if record.maximizes and self._first > 0 and (state == "stalls" or (state == "rises" and grew)):
            return self._finding(record, "rose", "the optimizer is set to maximize")
        if record.loss == -math.inf:
            return self._finding(record, "fell", "the loss has the wrong sign")
        # A density's loss is counted in nats, of which a few lie between a guess and what can be known.
        below = not finite or record.loss < -self.depth * max(1.0, abs(self._first))
        if grew and below and self._marks and self._marks[-1][1] < 0 and self._faster(broke=not finite):
            return self._finding(record, "fell", "the loss has the wrong sign")
        return None

    def _certain(self, record: StepRecord) -> Finding | None:
        """What a loss function gave says it."""
        if record.num_steps != 1 or record.loss is None:
            return None
        for given in record.losses or ():
            low, high = given.target_low or 0.0, given.target_high or 0.0
            kind = "overlap" if is_overlap(given) else given.kind.replace("binary-", "binary ")
            beyond = low < -_OUTSIDE or high > 1 + _OUTSIDE
            if beyond and (given.kind == "binary-cross-entropy" or is_overlap(given)):
                far = "it is no share of them" if is_overlap(given) else "it has no floor"
                what = f"the targets of the {kind} go from {low:.3g} to {high:.3g}: {far}."
                return self._say(record, what, ("its targets lie outside of 0 to 1",), (remedies.TARGETS_IN_RANGE,))
            if is_overlap(given):
                if given.kind != "overlap" and given.value is not None and _are_same(given.value, record.loss):
                    what = f"what is minimized, {record.loss:.3g}, rises with the overlap of prediction and targets."
                    return self._say(record, what, ("the loss has the wrong sign",), (remedies.LESS_OVERLAP,))
                continue
            if (
                not record.loss < 0
                or given.value is None
                or abs(abs(given.value) - abs(record.loss)) > _SAME * abs(record.loss)
            ):
                continue
            if given.value > 0:
                what = f"what is back-propagated, {record.loss:.3g}, is the negative of the {given.kind}."
                return self._say(record, what, ("the loss has the wrong sign",), (remedies.FLIP_SIGN,))
        return None

    def _faster(self, *, broke: bool) -> bool:
        """Whether the loss fell faster, by half again, from each of the last stretches to the next."""
        falls = [(x - y) / (n - m) for (m, x), (n, y) in pairwise(self._marks)]
        falls = falls[-2:] if broke else falls
        needed = 2 if broke else 3
        return len(falls) >= needed and all(b > _FASTER * a > 0 for a, b in pairwise(falls))

    def _finding(self, record: StepRecord, moved: str, cause: str) -> Finding:
        what = (
            f"the loss began at {self._first:.3g} and {moved} to {record.loss:.3g} without slowing down, while the "
            f"gradient norm grew from {self._smallest:.3g} to {record.total_norm:.3g}."
        )
        # The negative of what a loss function gave is known at once; what else falls without end does so by a term.
        tries = (remedies.EACH_SIGN, remedies.FLIP_SIGN) if moved == "fell" else (remedies.FLIP_SIGN,)
        return self._say(record, what, (cause, "a loss that has no lower bound"), tries)

    def _say(self, record: StepRecord, what: str, causes: Sequence[str], tries: Sequence[str]) -> Finding:
        return Finding(
            rule=self.id,
            severity="critical",
            message=what,
            step=record.step,
            layers=record.layers,
            evidence={"first_loss": self._first or 0.0, "smallest_norm": self._smallest},
            causes=tuple(causes),
            remedies=tuple(tries),
        )


def _are_same(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME * max(abs(one), abs(other))
