"""A last part that does not train."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord


class FrozenLast(Rule):
    """The last layers are frozen while all before them train, through them.

    What is frozen on purpose behind trained layers is larger than they are: a language model behind its prompt, a
    trunk behind an input adapter. Here it must be a third of them at most.

    Args:
        share: of the frozen layers to those before, in (0, 1].

    Raises:
        ValueError: if ``share`` is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = FrozenLast()
        >>> rule.observe(quiet_record(0, frozen_last=())) is None
        True
        >>> rule.observe(quiet_record(0, frozen_last=("head",))).message
        'head: frozen, although the 6 layers before train through it.'
    """

    id = "frozen"
    patience = 2
    needs = ("frozen_last",)

    def __init__(self, share: float = 0.34) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        self.share = share

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        frozen = record.frozen_last or ()
        trained = sum(record.trainable or (True,) * len(record.layers))
        if not frozen or len(frozen) > max(1.0, self.share * trained) or trained < 2:
            return None
        through = "it" if len(frozen) == 1 else "them"
        return Finding(
            rule=self.id,
            severity="warning",
            message=f"{named(frozen)}: frozen, although the {trained} layers before train through {through}.",
            step=record.step,
            layers=frozen,
            evidence={"frozen": float(len(frozen)), "trained": float(trained)},
            causes=("requires_grad was switched off by mistake",),
            remedies=(remedies.UNFREEZE,),
        )
