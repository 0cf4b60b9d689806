"""A critic that has won."""

from __future__ import annotations

import statistics

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord


class CriticWon(Rule):
    """Of two optimizers that work against each other, the loss of one is nearly gone while that of the other rises.

    Asked where there are exactly two, and of losses that are positive, as those of a GAN without Wasserstein's
    distance are.

    Args:
        left: share of its first loss that the winner has left, in (0, 1).
        rise: of the loser's loss over its first, > 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule, found = CriticWon(), []
        >>> for step in range(12):
        ...     for optimizer, loss in enumerate((1.4 * 0.6**step, 0.7 + 0.5 * step)):
        ...         found.append(rule.observe(quiet_record(step, optimizer=optimizer, num_optimizers=2, loss=loss)))
        >>> found[0] is None, found[-1].message[:62]
        (True, 'the loss of optimizer 0 has fallen to 0.00922, 1.01% of its fi')
    """

    id = "critic-won"
    patience = 3
    needs = ("loss",)
    scope = "run"

    def __init__(self, left: float = 0.05, rise: float = 2.0) -> None:
        if not 0 < left < 1:
            raise ValueError(f"left must lie between 0 and 1, got {left}")
        if not rise > 1:
            raise ValueError(f"rise must be above 1, got {rise}")
        self.left, self.rise = left, rise
        self._losses: dict[int, list[float]] = {}
        self._first: dict[int, float] = {}

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.loss is not None
        if record.num_optimizers != 2:
            return None
        mine = self._losses.setdefault(record.optimizer, [])
        mine.append(record.loss)
        if len(mine) == 3:
            self._first[record.optimizer] = statistics.fmean(mine)
        del mine[:-3]
        if len(self._first) < 2 or min(self._first.values()) <= 0:
            return None
        now = {optimizer: statistics.fmean(losses) for optimizer, losses in self._losses.items()}
        shares = {optimizer: now[optimizer] / self._first[optimizer] for optimizer in now}
        winner, loser = sorted(shares, key=lambda optimizer: shares[optimizer])
        if record.optimizer != loser or not 0 <= shares[winner] < self.left or shares[loser] < self.rise:
            return None
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"the loss of optimizer {winner} has fallen to {now[winner]:.3g}, {shares[winner]:.2%} of its first, "
                f"while that of optimizer {loser} rose {shares[loser]:.3g} times."
            ),
            step=record.step,
            evidence={"winner": float(winner), "left": shares[winner], "rise": shares[loser]},
            causes=("one side learns faster, and its gradient tells the other nothing any more",),
            remedies=(remedies.LESS_TRAINING, remedies.EVEN_RATES),
        )
