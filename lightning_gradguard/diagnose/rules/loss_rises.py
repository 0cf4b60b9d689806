"""A loss that rises."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.unstable import LargestStep
from lightning_gradguard.record import Finding, StepRecord


class LossRises(Rule):
    """The loss is well above where it began, or has lost most of what it had gained, beyond its noise.

    Not asked with several optimizers, where losses move against each other, nor where the optimizer is set to maximize,
    nor of losses that began below zero.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = LossRises()
        >>> losses = (3.7, 3.7, 3.7, 41.0, 411.0)
        >>> found = [rule.observe(quiet_record(step, loss=loss)) for step, loss in enumerate(losses)]
        >>> found[2] is None, found[4].message
        (True, 'the loss rose from 3.7 to 115.')
    """

    id = "loss-rises"
    patience = 3
    needs = ("loss",)

    def __init__(self) -> None:
        self._progress = Progress()
        self._step = LargestStep()

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._progress.add(record)
        self._step.add(record)
        progress = self._progress
        if record.num_optimizers > 1 or record.maximizes or progress.state != "rises" or not progress.first > 0:
            return None
        above = progress.now > progress.first
        came_from = f"from {progress.first:.3g}" if above else f"back from {progress.best:.3g}"
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"the loss rose {came_from} to {progress.now:.3g}.",
            step=record.step,
            layers=record.layers,
            evidence={"first": progress.first, "best": progress.best, "now": progress.now},
            causes=("targets or a term of the loss that grow", "the learning rate is too high", "the data changed"),
            remedies=(*self._step.tries(record), remedies.FLIP_SIGN),
        )
