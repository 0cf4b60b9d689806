"""Input that nobody looked at: too large, too small, constant, or of very different scales."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.rules.target_scale import that_entered, that_enters_later
from lightning_gradguard.record import ActivationStats, BatchStats, Finding, Severity, StepRecord

_THROWN = 100.0  # root mean square of the first output from which the net is thrown about by what enters


class InputScale(Rule):
    """What enters the first layer is far from the unit variance that initializations are made for, or carries nothing.

    Pixels from 0 to 255, prices, time stamps; values of 1e-4; one column of 1e6 beside others of one; the same sample
    again and again. Silent if the first layer normalizes.

    Args:
        rms: root mean square of the input from which to speak up, > 0. 30 is far from any standardized data, and
            below raw pixels (about 130).
        low: below which to speak up, > 0. A share of ones of 0.01 % has this root mean square.
        spread: largest over median scale of the features, > 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> rule = InputScale()
        >>> rule.observe(quiet_record(0, activations=(quiet_activation("a", input_rms=1.1),))) is None
        True
        >>> rule.observe(quiet_record(0, activations=(quiet_activation("a", input_rms=131.0),))).message
        'the input of a has a root mean square of 131; about 1 is usual.'
    """

    id = "input-scale"
    patience = 2
    harmless_if_learning = True
    needs = ("activations",)

    def __init__(self, rms: float = 30.0, low: float = 0.01, spread: float = 100.0) -> None:
        if not rms > 0:
            raise ValueError(f"rms must be positive, got {rms}")
        if not low > 0:
            raise ValueError(f"low must be positive, got {low}")
        if not spread > 1:
            raise ValueError(f"spread must be above 1, got {spread}")
        self.rms, self.low, self.spread = rms, low, spread
        self._later: str | None = None  # name of the tensor that enters beside the first layer

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        first = next((a for a in record.activations or () if a.input_rms is not None), None)
        if first is None or first.input_rms is None or "Norm" in first.kind:
            return None
        if _is_blank(first, record):
            what = (
                f"the output of {first.module} is all zero, and it is not trained: nothing of the input gets through."
            )
            return self._finding(record, first, what, "critical", constant=True)
        given = _of_batch(first, record)
        from_batch = not record.inputs or any(
            b.rms == 0 for b in record.inputs
        )  # else it is a state that begins at zero
        if first.input_rms == 0 and from_batch and "Embedding" not in first.kind:
            return self._finding(record, first, f"the input of {first.module} is all zero.", "critical", constant=True)
        if given is not None and not given.varies:
            what = f"all samples of the batch ({given.name}) are the same."
            return self._finding(record, first, what, "warning", constant=True)
        if (beside := self._beside(record, first)) is not None:
            return beside
        if "Embedding" in first.kind:
            return None  # tokens have no scale
        if first.input_rms and not self.low <= first.input_rms <= self.rms:
            what = f"the input of {first.module} has a root mean square of {first.input_rms:.3g}; about 1 is usual."
            # Large input throws the first layers about; small input leaves their gradient as small.
            far = first.input_rms > 10 * self.rms or first.input_rms < 0.1 * self.low or first.rms > _THROWN
            return self._finding(record, first, what, "critical" if far else "warning", constant=False)
        if given is not None and given.spread > self.spread:
            what = f"the features of the input ({given.name}) differ in scale by {given.spread:.3g} times."
            return self._finding(record, first, what, "critical" if first.rms > _THROWN else "warning", constant=False)
        return None

    def _beside(self, record: StepRecord, first: ActivationStats) -> Finding | None:
        """A tensor of the batch that enters beside the first layer, as columns do that are joined to embeddings."""
        entered = that_enters_later(record) if self._later is None else self._later
        self._later = entered or ""
        given = next((b for b in record.inputs or () if b.name == self._later), None)
        if given is None or given is that_entered(record.inputs or (), first.input_rms or 0.0):
            return None
        what = f"a tensor that enters the net ({given.name} of the batch) has a root mean square of {given.rms:.3g}"
        return self._finding(record, first, f"{what}; about 1 is usual.", "critical", constant=False)

    def _normalize(self, record: StepRecord, first: ActivationStats) -> str:
        """What to normalize: the targets of a series are as large as what they are predicted from."""
        tensors = record.inputs or ()
        entered = that_entered(tensors, first.input_rms or 0.0)
        # What enters in several pieces, or joined to others, is known by none of them: each large one is named.
        others = any(b.floating and b.rms > self.rms for b in tensors if b is not entered and b.name != self._later)
        large = (first.input_rms or 0.0) > self.rms
        return remedies.NORMALIZE_BOTH if large and others else remedies.NORMALIZE_INPUT

    def _finding(
        self, record: StepRecord, first: ActivationStats, what: str, severity: Severity, *, constant: bool
    ) -> Finding:
        return Finding(
            rule=self.id,
            severity=severity,
            message=what,
            step=record.step,
            layers=(first.module,),
            evidence={"input_rms": first.input_rms or 0.0},
            causes=("the input is not normalized",)
            if not constant
            else ("the data loader yields nothing that varies",),
            remedies=(remedies.VARY_INPUT if constant else self._normalize(record, first),),
        )


def _is_blank(first: ActivationStats, record: StepRecord) -> bool:
    """Whether an embedding is all zero and is not trained: vectors that were to be loaded and were not."""
    if "Embedding" not in first.kind or first.rms != 0 or record.trainable is None:
        return False
    trained = {name for name, trains in zip(record.layers, record.trainable, strict=True) if trains}
    return first.module not in trained


def _of_batch(first: ActivationStats, record: StepRecord) -> BatchStats | None:
    """The tensor of the batch that went into the first layer, known by its root mean square."""
    rms = first.input_rms or 0.0
    return next((b for b in record.inputs or () if abs(b.rms - rms) <= 1e-3 * abs(rms)), None)
