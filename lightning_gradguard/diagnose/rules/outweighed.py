"""A loss whose other terms outweigh the one that compares with the data."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.record import Finding, StepRecord

_MIN_STEPS = 32  # before them the term may not have begun to fall
_LEARNED = 0.95  # of what the best constant prediction costs: what has learned anything is below
_SAME = (
    0.01  # by which the loss must be above what the loss function gave, for others to be there: a factor makes it less
)


class Outweighed(Rule):
    """The term of the loss that compares with the data stays where a constant would leave it, beside other terms.

    One loss function, or squared error, was seen, it was a part of what was back-propagated in the first steps, and
    after 32 of them it costs what the best constant prediction would cost. A penalty is smallest when the net says
    nothing: one that weighs too much wins. In a variational autoencoder that is the collapse of the posterior (Bowman
    et al. 2016), where the divergence is zero and the decoder predicts the mean.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> from lightning_gradguard.record import LossStats
        >>> rule = Outweighed()
        >>> rule.observe(quiet_record(64, loss=9.0, losses=(LossStats("squared-error", 1.0, value=0.4),))) is None
        True
        >>> rule.observe(quiet_record(65, loss=9.0, losses=(LossStats("squared-error", 1.0, value=1.0),))).evidence
        {'term': 1.0, 'constant': 1.0, 'loss': 9.0}
    """

    id = "outweighed"
    patience = 3
    needs = ("losses", "loss")

    def __init__(self) -> None:
        self._of_terms = False  # whether the loss is more than what the loss function gave

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.losses is not None and record.loss is not None
        known = [given for given in record.losses if given.baseline is not None]
        if len(known) != 1:
            return None
        given = known[0]
        value, constant = given.value or 0.0, given.baseline or 0.0
        if record.num_steps == 1:
            self._of_terms = self._of_terms or record.loss > (1 + _SAME) * value
        if not self._of_terms or record.step < _MIN_STEPS or not 0 < _LEARNED * constant < value:
            return None
        return Finding(
            rule=self.id,
            severity="warning",
            message=(
                f"the {given.kind} is {value:.3g} after {record.step} steps, what the best constant prediction costs: "
                f"the other terms of the loss, {record.loss:.3g} in all, outweigh it."
            ),
            step=record.step,
            evidence={"term": value, "constant": constant, "loss": record.loss},
            causes=("a penalty or divergence weighs too much", "the posterior has collapsed"),
            remedies=(remedies.WEIGH_LESS,),
        )
