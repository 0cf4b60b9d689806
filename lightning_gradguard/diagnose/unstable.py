"""What to try in a run that blows up, by how large its steps were."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.settled import SettledRatios, round_factor
from lightning_gradguard.record import StepRecord

_LARGE = 0.05  # update-to-weight ratio of the median layer up to which a step is as usual
_CALM = 0.005  # at which training goes on where it was unstable
_MOST = 300.0


class LargestStep:
    """Remembers the largest step of a run, and says what follows from it.

    A rate is told to be lowered by a number only where steps were larger than those of runs that train well: what
    blows up by steps of usual size is made to by something else, and no factor on the rate is known to cure it.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> step = LargestStep()
        >>> step.add(quiet_record(1, update_ratios=(0.15,) * 6))
        >>> step.tries(quiet_record(2))[0]
        'lower the learning rate by about 30×'
    """

    def __init__(self) -> None:
        self._ratios = SettledRatios()
        self._largest = 0.0

    def add(self, record: StepRecord) -> None:
        """Takes in one record."""
        self._largest = max(self._largest, self._ratios.median(record) or 0.0)

    @property
    def lower_rate(self) -> str | None:
        """A lower rate as a remedy, with its number; ``None`` where no step was large."""
        if self._largest <= _LARGE:
            return None
        return remedies.lower_rate(min(round_factor(self._largest / _CALM), _MOST))

    def tries(self, record: StepRecord, *, norm: float | None = None) -> tuple[str, ...]:
        """Remedies, the most likely one first; ``norm`` is one to clip at."""
        clip = remedies.clip(norm, clips=record.coefficient is not None)
        if record.num_optimizers == 2:
            return remedies.BOUND_CRITIC, clip, self.lower_rate or remedies.lower_rate()
        if self.lower_rate is None:
            return remedies.WHAT_GROWS, clip, remedies.lower_rate()
        return self.lower_rate, clip
