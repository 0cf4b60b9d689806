"""Targets far from unit scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import BatchStats, Finding, StepRecord

_SHARE = 0.01  # of a tensor that a layer must put out to have been given it: initial weights take a tenth at most
_FAR = 100.0  # times what the net puts out that the targets must be, to judge by a squared error


def that_entered(tensors: Sequence[BatchStats], rms: float) -> BatchStats | None:
    """The tensor of the batch that entered the first layer: the first one of nearly that root mean square."""
    return next((b for b in tensors if rms and 0.9 < b.rms / rms < 1.1), None)


def that_enters_later(record: StepRecord) -> str | None:
    """Name of a large tensor of the batch that some layer but the first was given, known by what that one puts out.

    Of an untrained net: weights near one make large numbers of large numbers only. Looked at in the first record.
    """
    put_out = [a.rms for a in record.activations or () if "Linear" in a.kind or "Conv" in a.kind]
    large = [b for b in record.inputs or () if b.floating and b.rms > _FAR * max(1.0, _median(record))]
    worst = max(large, key=lambda b: b.rms, default=None)
    return worst.name if worst is not None and max(put_out, default=0.0) > _SHARE * worst.rms else None


def _median(record: StepRecord) -> float:
    """Of the batch's other numbers."""
    sizes = sorted(b.rms for b in record.inputs or () if b.floating)
    return sizes[(len(sizes) - 1) // 2] if sizes else 0.0


class TargetScale(Rule):
    """Targets are far larger than one: in the batch, or to judge by the first loss.

    A tensor of the batch is large, and the first loss is as large as if it were predicted raw. Or most of the first
    loss is a squared error whose targets the training step makes, and even the best constant prediction is as far off.
    Or what the net puts out and all that is in the batch is near one, and the first loss is not: the returns of a
    policy, or a factor on the loss.

    A net puts out numbers near one at first; with targets of 1e5 a squared error begins at 1e10, and the last bias
    has a hundred thousand steps of Adam to go.

    Args:
        rms: root mean square of the targets from which to speak up, > 1.

    Raises:
        ValueError: if ``rms`` is not above 1.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> from lightning_gradguard.record import BatchStats
        >>> rule = TargetScale()
        >>> rule.observe(quiet_record(0, loss=0.9, inputs=(BatchStats("0", 1.0), BatchStats("1", 1e5)))) is None
        True
        >>> rule = TargetScale()
        >>> rule.observe(quiet_record(0, loss=9e9, inputs=(BatchStats("0", 1.0), BatchStats("1", 1e5)))).message
        'targets (1 of the batch) have a root mean square of 1e+05, and the first loss is 9e+09.'
    """

    id = "target-scale"
    patience = 2
    harmless_if_learning = True
    needs = ("loss",)

    def __init__(self, rms: float = 30.0) -> None:
        if not rms > 1:
            raise ValueError(f"rms must be above 1, got {rms}")
        self.rms = rms
        self._first: float | None = None
        self._out_of_nowhere = False
        self._range: tuple[float, float] | None = None  # of the targets of the squared error that is the first loss
        self._later: str | None = None  # name of a tensor that enters the net beside its first layer: no target

    def _is_predicted_raw(self, tensor: BatchStats, loss: float) -> bool:
        """Whether a tensor is large, and the loss is as large as it makes it."""
        if not tensor.floating or tensor.rms <= self.rms:
            return False
        return 0.1 * tensor.rms < loss < 3 * tensor.rms**2

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.loss is not None
        if self._first is None:
            self._first = record.loss
            self._out_of_nowhere = self._is_too_large_for(record)
            self._range = self._range_of_large_targets(record)
            self._later = that_enters_later(record)
        if record.inputs is None:
            return self._without_a_tensor(record)
        entered = max((a.input_rms or 0.0 for a in record.activations or ()), default=0.0)
        others = [b for b in record.inputs if b is not that_entered(record.inputs, entered)]
        large = [b for b in others if b.name != self._later and self._is_predicted_raw(b, self._first)]
        if not large:
            return self._without_a_tensor(record)
        worst = max(large, key=lambda b: b.rms)
        return Finding(
            rule=self.id,
            severity="critical" if worst.rms > 30 * self.rms else "warning",
            message=(
                f"targets ({worst.name} of the batch) have a root mean square of {worst.rms:.3g}, and the first loss "
                f"is {self._first:.3g}."
            ),
            step=record.step,
            evidence={"target_rms": worst.rms, "first_loss": self._first},
            causes=("the targets are not normalized",),
            remedies=(remedies.NORMALIZE_TARGET,),
        )

    def _is_too_large_for(self, record: StepRecord) -> bool:
        """Whether the first loss is one that only large targets make; cross-entropy is for others to judge."""
        assert record.loss is not None
        if not record.activations or any(not given.kind.endswith("-error") for given in record.losses or ()):
            return False
        put_out = [a.rms for a in record.activations] + [b.rms for b in record.inputs or ()]
        return math.isfinite(record.loss) and record.loss > (_FAR * max(1.0, *put_out)) ** 2

    def _range_of_large_targets(self, record: StepRecord) -> tuple[float, float] | None:
        """From where to where the targets go of a squared error that is most of the loss, if they lie far apart."""
        assert record.loss is not None
        for given in record.losses or ():
            far = given.baseline is not None and given.baseline > self.rms**2 * max(1.0, given.given_rms or 0.0) ** 2
            if given.kind == "squared-error" and far and 0.5 * record.loss < (given.value or 0.0) < 2 * record.loss:
                return given.target_low or 0.0, given.target_high or 0.0
        return None

    def _without_a_tensor(self, record: StepRecord) -> Finding | None:
        """What the first loss tells where no tensor of the batch is large."""
        if self._range is None and not self._out_of_nowhere:
            return None
        what = (
            f"the targets of the squared error go from {self._range[0]:.3g} to {self._range[1]:.3g}, and the first "
            f"loss is {self._first:.3g}."
            if self._range is not None
            else f"the first loss is {self._first:.3g}, although what the net puts out and what is in the batch is not "
            "far from one: its targets, or a factor on it, are far too large."
        )
        return self._by_the_loss(record, what)

    def _by_the_loss(self, record: StepRecord, what: str) -> Finding:
        assert self._first is not None
        return Finding(
            rule=self.id,
            severity="warning",
            message=what,
            step=record.step,
            evidence={"first_loss": self._first},
            causes=("the targets are not normalized", "a large factor on the loss"),
            remedies=(remedies.NORMALIZE_TARGET,),
        )
