"""A last activation that does not reach the targets."""

from __future__ import annotations

import math

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, LossStats, StepRecord

_RANGES = {"Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "ReLU": (0.0, math.inf), "Softmax": (0.0, 1.0)}
_SAME = 0.01  # by which two root mean squares may differ and be of the same tensor


class OutputRange(Rule):
    """The targets of a squared error lie outside of what the last activation can put out.

    A sigmoid before standardized pixels, a ReLU before targets of either sign: such a net is driven into the flat end
    of the activation. Known from the targets of a squared error, where it is given what the last activation put out.

    Args:
        beyond: how far outside a target must lie, as a share of the largest, in (0, 1): noise may cross an edge.

    Raises:
        ValueError: if ``beyond`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> from lightning_gradguard.record import LossStats
        >>> last = quiet_activation("net.3", "Sigmoid", rms=0.5)
        >>> good, bad = (LossStats("squared-error", target_low=low, target_high=1, given_rms=0.5) for low in (0, -0.8))
        >>> OutputRange().observe(quiet_record(0, activations=(last,), losses=(good,))) is None
        True
        >>> OutputRange().observe(quiet_record(0, activations=(last,), losses=(bad,))).message
        'the targets go from -0.8 to 1, and net.3 (Sigmoid), the last activation, stays within 0 to 1.'
    """

    id = "output-range"
    patience = 2
    needs = ("activations", "losses")

    def __init__(self, beyond: float = 0.25) -> None:
        if not 0 < beyond < 1:
            raise ValueError(f"beyond must lie between 0 and 1, got {beyond}")
        self.beyond = beyond

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        last = (record.activations or (None,))[-1]
        if last is None or last.kind not in _RANGES:
            return None
        lowest, highest = _RANGES[last.kind]
        for loss in record.losses or ():
            low, high = loss.target_low, loss.target_high
            if low is None or high is None or not _is_of(loss, last.rms):
                continue
            margin = self.beyond * max(abs(low), abs(high))
            if low >= lowest - margin and high <= highest + margin:
                continue
            bounds = f"above {lowest:g}" if highest == math.inf else f"within {lowest:g} to {highest:g}"
            return Finding(
                rule=self.id,
                severity="warning",
                message=(
                    f"the targets go from {low:.3g} to {high:.3g}, and {last.module} ({last.kind}), the last "
                    f"activation, stays {bounds}."
                ),
                step=record.step,
                layers=(last.module,),
                evidence={"low": low, "high": high},
                causes=("an activation after the last layer", "the targets are not scaled to its range"),
                remedies=(remedies.OPEN_OUTPUT,),
            )
        return None


def _is_of(loss: LossStats, rms: float) -> bool:
    """Whether a loss was given a tensor of that root mean square."""
    return loss.given_rms is not None and abs(loss.given_rms - rms) <= _SAME * rms
