"""Probabilities where a loss wants raw outputs, and raw outputs where it wants probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, LossStats, Severity, StepRecord

_ENDS = ("Sigmoid", "Softmax", "ReLU")
_NEAR = 0.05  # by which rounding and smoothing may carry a probability, or its logarithm, over the edge
_SAME = 0.01  # by which two root mean squares may differ and be of the same tensor


class DoubleActivation(Rule):
    """A loss that applies softmax or sigmoid itself is given what has been through one already.

    Cross-entropy: rows that lie in [0, 1] and sum to one. Binary cross-entropy with logits: all values in [0, 1], and a
    sigmoid, softmax or ReLU of the net put out numbers of that size: the logits of a net that has not learned may all
    lie there by chance. And the other way round: ``nll_loss`` applies nothing and wants log-probabilities, whose
    exponentials sum to one; of raw outputs it has no floor, and of probabilities hardly a gradient. ``kl_div`` wants
    log-probabilities too, none of which is above zero, and as its target probabilities, which lie within 0 and 1, or
    with ``log_target`` their logarithms. An overlap with the targets (Dice, Jaccard, Tversky) wants probabilities.
    And a softmax over a single output is one, and the loss zero.

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
    sees_bad_steps = True

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if (missing := _first_missing(record)) is not None:
            return _finding(record, missing)
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


@dataclass(frozen=True)
class _Missing:
    """What a loss is given that wants probabilities or their logarithms: in words, why, and what to try."""

    what: str
    causes: tuple[str, ...]
    tries: str
    severity: Severity = "critical"


_OF_OVERLAP = _Missing(
    "the overlap with the targets (Dice, Jaccard, Tversky) is given numbers outside of 0 to 1: sigmoid or softmax is "
    "missing before it, and without them its denominator may come to zero.",
    ("the raw outputs go into the loss",),
    remedies.PASS_PROBABILITIES,
)


def _missing(loss: LossStats) -> _Missing | None:
    """What is wrong with what such a loss is given, if anything is."""
    if is_divergence(loss):
        return _of_divergence(loss)
    if is_overlap(loss):
        return _OF_OVERLAP if loss.raw else None
    if loss.alone:
        return _Missing(
            "cross-entropy is given a single output: its softmax is always 1, and the loss is always zero.",
            ("a single output in place of one for each class",),
            remedies.ONE_OUTPUT,
        )
    return (
        _Missing(
            "nll_loss is given numbers that are no log-probabilities: log_softmax is missing before it.",
            ("nll_loss in place of cross_entropy", "the model does not end in log_softmax"),
            remedies.PASS_LOG_PROBABILITIES,
        )
        if loss.raw
        else None
    )


def _first_missing(record: StepRecord) -> _Missing | None:
    """Of the losses of a step; a softmax over one output is wrong where the whole loss is zero by it."""
    found = (_missing(loss) for loss in record.losses or () if not loss.alone or record.loss == 0)
    return next(filter(None, found), None)


def _of_divergence(loss: LossStats) -> _Missing | None:
    if loss.probabilities:
        return _Missing(
            "kl_div is given probabilities, and wants their logarithms: softmax stands where log_softmax is due.",
            ("the model ends in a softmax",),
            remedies.PASS_LOGARITHMS,
        )
    if loss.raw:
        return _Missing(
            "kl_div is given numbers that are no log-probabilities: log_softmax is missing before it.",
            ("the model does not end in log_softmax", "the two arguments were exchanged"),
            remedies.PASS_LOG_SOFTMAX,
        )
    if not is_of_no_probabilities(loss):
        return None
    where = f"the targets of kl_div go from {loss.target_low:.3g} to {loss.target_high:.3g}"
    if loss.kind.endswith("log_target"):
        return _Missing(
            f"{where}, and log_target=True takes them for log-probabilities, which lie below 0.",
            ("the targets are probabilities or raw outputs",),
            remedies.TARGETS_OF_DIVERGENCE,
            "warning",  # it has a floor, at what is nearly uniform
        )
    return _Missing(
        f"{where}, and are no probabilities, which lie within 0 and 1.",
        ("the targets are raw outputs, or log-probabilities without log_target=True",),
        remedies.TARGETS_OF_DIVERGENCE,
    )


def _finding(record: StepRecord, missing: _Missing) -> Finding:
    return Finding(
        rule=DoubleActivation.id,
        severity=missing.severity,
        message=missing.what,
        step=record.step,
        evidence={"loss": record.loss or 0.0},
        causes=missing.causes,
        remedies=(missing.tries,),
    )


def is_divergence(loss: LossStats) -> bool:
    """Whether a loss is what ``kl_div`` was given."""
    return loss.kind.startswith("kl-divergence")


def is_overlap(loss: LossStats) -> bool:
    """Whether a loss is made of an overlap of the prediction with its targets."""
    return loss.kind.startswith("overlap")


def is_of_no_probabilities(loss: LossStats) -> bool:
    """Whether the targets of ``kl_div`` are neither probabilities nor, where these are due, their logarithms."""
    if not is_divergence(loss) or loss.target_low is None or loss.target_high is None:
        return False
    if loss.kind.endswith("log_target"):
        return loss.target_high > _NEAR or loss.target_low >= 0
    return loss.target_low < -_NEAR or loss.target_high > 1 + _NEAR


def _is_put_out(loss: LossStats, record: StepRecord) -> bool:
    """Whether an activation of the net put out what the loss was given, as far as that is known."""
    if loss.given_rms is None:
        return True
    ends = [a.rms for a in record.activations or () if a.kind in _ENDS]
    return any(abs(rms - loss.given_rms) <= _SAME * rms for rms in ends)
