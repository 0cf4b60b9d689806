"""A last part that does not train, a table of embeddings that never did, or a factor of zero."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord

_ROWS = 500  # elements from which a table's root mean square tells how it was drawn
_WITHIN = (0.02, 3.0)  # standard errors from one: nearer is a table that was scaled to one, farther another one


class FrozenLast(Rule):
    """The last layers are frozen while all before them train, through them; or a table of embeddings is as drawn.

    What is frozen on purpose behind trained layers is larger than they are: a language model behind its prompt, a
    trunk behind an input adapter. Here it must be a third of them at most.

    A frozen table is one that was trained before, as a rule, and those of words have entries of 0.02 to 0.5. One whose
    root mean square is that of torch's own start, N(0, 1), within what chance allows, holds nothing.

    So does any frozen layer whose weights are as torch draws them, where the loss is after 64 steps what the best
    constant prediction would cost: random features that serve are left alone.

    And a frozen matrix that is all zero, in or beside layers whose gradient is zero: one of two factors, as of
    an adapter, without which the other does not train.

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

    def __init__(self, share: float = 0.34) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        self.share = share
        self._progress = Progress()
        self._seen: Finding | None = None  # at the last early record
        self._drawn: tuple[str, ...] = ()

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        self._progress.add(record)
        if record.frozen_last is not None:
            self._seen, self._drawn = self._look(record), record.frozen_as_drawn or ()
        if self._seen is not None or not self._drawn or not self._progress.has_learned_nothing:
            return self._seen
        what = (
            f"{named(self._drawn)}: frozen, with weights that are still as torch draws them, and the loss is "
            f"{self._progress.now:.3g} after {self._progress.steps} steps, what the best constant prediction costs."
        )
        return self._finding(record, self._drawn, what)

    def _look(self, record: StepRecord) -> Finding | None:
        """What the layers themselves say."""
        if record.frozen_zeros:
            still = [n for n, norm in zip(record.layers, record.layer_norms, strict=True) if norm == 0]
            one = len(record.frozen_zeros) == 1
            what = (
                f"{named(record.frozen_zeros)}: frozen, and all zero; what is multiplied by {'it' if one else 'them'} "
                f"cannot train: the gradient of {named(still)} is exactly zero."
            )
            return self._finding(record, record.frozen_zeros, what)
        if tables := _as_drawn(record):
            return self._finding(
                record, tables, f"{named(tables)}: frozen, and its entries are still as torch draws them, from N(0, 1)."
            )
        frozen = record.frozen_last or ()
        trained = sum(record.trainable or (True,) * len(record.layers))
        if not frozen or len(frozen) > max(1.0, self.share * trained) or trained < 2:
            return None
        through = "it" if len(frozen) == 1 else "them"
        what = f"{named(frozen)}: frozen, although the {trained} layers before train through {through}."
        return self._finding(record, frozen, what)

    def _finding(self, record: StepRecord, layers: tuple[str, ...], what: str) -> Finding:
        return Finding(
            rule=self.id,
            severity="warning",
            message=what,
            step=record.step,
            layers=layers,
            evidence={"frozen": float(len(layers)), "trained": float(sum(record.trainable or ()))},
            causes=("requires_grad was switched off by mistake",),
            remedies=(remedies.UNFREEZE,),
        )


def _as_drawn(record: StepRecord) -> tuple[str, ...]:
    """Frozen embeddings whose entries are as torch draws them, in a net most layers of which train."""
    trains = record.trainable or ()
    if not record.weight_norms or not record.layer_sizes or not record.layer_kinds or 2 * sum(trains) < len(trains):
        return ()
    found = []
    for i, name in enumerate(record.layers):
        norm, size = record.weight_norms[i], record.layer_sizes[i]
        if not trains[i] and record.layer_kinds[i] == "Embedding" and norm is not None and size >= _ROWS:
            off = abs(norm / size**0.5 - 1) * (2 * size) ** 0.5  # in standard errors of a root mean square
            if _WITHIN[0] < off < _WITHIN[1]:
                found.append(name)
    return tuple(found)
