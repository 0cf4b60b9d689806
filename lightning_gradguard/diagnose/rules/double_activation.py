"""Probabilities where a loss wants raw outputs."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, LossStats, StepRecord

_ENDS = ("Sigmoid", "Softmax", "ReLU")
_SAME = 0.01  # by which two root mean squares may differ and be of the same tensor


class DoubleActivation(Rule):
    """A loss that applies softmax or sigmoid itself is given what has been through one already.

    Cross-entropy: rows that lie in [0, 1] and sum to one. Binary cross-entropy with logits: all values in [0, 1], and a
    sigmoid, softmax or ReLU of the net put out numbers of that size: the logits of a net that has not learned may all
    lie there by chance. And the other way round: ``nll_loss`` applies nothing and wants log-probabilities, whose
    exponentials sum to one; of raw outputs it has no floor, and of probabilities hardly a gradient.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> from lightning_gradguard.record import LossStats
        >>> rule = DoubleActivation()
        >>> rule.observe(quiet_record(0, losses=(LossStats("cross-entropy"),))) is None
        True
        >>> rule.observe(quiet_record(0, losses=(LossStats("cross-entropy", 2.3, True),))).message
        'cross-entropy is given probabilities, and applies softmax to them once more.'
    """

    id = "double-activation"
    patience = 3
    needs = ("losses",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if any(loss.raw for loss in record.losses or ()):
            return self._missing(record)
        given = next((loss for loss in record.losses or () if loss.probabilities and _is_put_out(loss, record)), None)
        if given is None:
            return None
        twice = "sigmoid" if given.kind == "binary-cross-entropy" else "softmax"
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{given.kind} is given probabilities, and applies {twice} to them once more.",
            step=record.step,
            evidence={"loss": given.value or 0.0},
            causes=(f"the model ends in a {twice}, and so does the loss",),
            remedies=(remedies.PASS_LOGITS,),
        )

    def _missing(self, record: StepRecord) -> Finding:
        return Finding(
            rule=self.id,
            severity="critical",
            message="nll_loss is given numbers that are no log-probabilities: log_softmax is missing before it.",
            step=record.step,
            causes=("nll_loss in place of cross_entropy", "the model does not end in log_softmax"),
            remedies=(remedies.PASS_LOG_PROBABILITIES,),
        )


def _is_put_out(loss: LossStats, record: StepRecord) -> bool:
    """Whether an activation of the net put out what the loss was given, as far as that is known."""
    if loss.given_rms is None:
        return True
    ends = [a.rms for a in record.activations or () if a.kind in _ENDS]
    return any(abs(rms - loss.given_rms) <= _SAME * rms for rms in ends)
