"""What a rule is, and the bookkeeping that turns what rules say into findings a person can trust."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_gradguard.harmless.part import Part, is_ours
from lightning_gradguard.record import Finding, LastWeights, StepRecord


class Rule(ABC):
    """Looks at records, one after the other, and says what is wrong, if anything is.

    A rule keeps what it must remember itself, and gets records only. Persistence is not its business:
    :class:`Diagnosis` raises a finding when it has held for ``patience`` records in a row.

    Attributes:
        id: stable name, as users see it and silence it, and the anchor in ``docs/diagnosis.md``.
        patience: records in a row for which a finding must hold before it is raised.
        needs: fields of the record without which the rule is not asked: such a record neither confirms nor clears.
        scope: ``"optimizer"`` if the rule looks at one optimizer (each gets its own copy of the rule), ``"run"`` if
            it compares them.
    """

    id: str
    patience: int = 3
    needs: tuple[str, ...] = ()
    scope: Literal["optimizer", "run"] = "optimizer"

    @abstractmethod
    def observe(self, record: StepRecord) -> Finding | None:
        """Returns the finding that holds at this record, or ``None``."""


# Steps that did not go through because of their gradients; "overflow" is the loss scaler's routine.
_BROKEN = ("skipped", "nonfinite", "rolled_back")


@dataclass
class _Standing:
    """How one rule stands with one optimizer."""

    held: int = 0  # records in a row that confirmed it
    missed: int = 0  # records in a row that did not
    count: int = 0  # records that confirmed it, ever
    finding: Finding | None = None  # what it said last
    since: int = 0  # step at which it was raised
    active: bool = False
    reported: bool = False

    @property
    def suspected(self) -> Finding | None:
        """Returns what the rule said of the last record that it was asked about."""
        return self.finding if self.held else None


class Diagnosis:
    """Shows records to the rules, and keeps what they found.

    A finding is raised once it has held for the rule's ``patience`` in a row, is reported once, counts on while it
    holds, and clears itself when it has not held for as long. A step whose gradients are not finite confirms at once
    what held just before it: a run that breaks leaves no time for patience.

    Args:
        rules: the rules, causes before what they lead to: in this order findings are named. Rules that look at one
            optimizer are copied for each; rules that compare optimizers are used as they are, so that several
            diagnoses can share them.
        silence: ids of rules to leave out.

    Raises:
        TypeError: if one of ``rules`` is not a :class:`Rule`, a class instead of an instance, say.
        ValueError: if an id in ``silence`` belongs to none of the rules, or two rules share an id.

    Example:
        >>> from lightning_gradguard.diagnose import Diagnosis, default_rules
        >>> Diagnosis(default_rules(), silence=("clipping-always",)).findings
        []
    """

    def __init__(self, rules: Sequence[Rule], silence: Sequence[str] = ()) -> None:
        for rule in rules:
            if not isinstance(rule, Rule):
                hint = f"; write {rule.__name__}()" if isinstance(rule, type) else ""
                raise TypeError(f"rules must be Rule objects, got {rule!r}{hint}")
        ids = [rule.id for rule in rules]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"rule ids must differ, got {twice!r} twice")
        unknown = sorted(set(silence) - set(ids))
        if unknown:
            raise ValueError(f"cannot silence {unknown}: the rules are {ids}")
        self._rules = [rule for rule in rules if rule.id not in silence]
        self._parts = {rule.id: _part_of(rule) for rule in rules}
        self._asked: dict[int, list[tuple[Rule, _Standing]]] = {}  # by optimizer
        self._weights = LastWeights()

    def observe(self, record: StepRecord) -> tuple[Finding, ...]:
        """Shows one record to every rule; one without weight norms gets the last known ones.

        Returns:
            What is newly raised at this record, to be attached to it.
        """
        record = self._weights.fill(record)
        if record.optimizer not in self._asked:
            copies = [rule if rule.scope == "run" else copy.deepcopy(rule) for rule in self._rules]
            self._asked[record.optimizer] = [(rule, _Standing()) for rule in copies]
        raised = [
            self._parts[rule.id].run(self._ask, rule, standing, record)
            for rule, standing in self._asked[record.optimizer]
        ]
        return tuple(finding for finding in raised if finding is not None)

    def _ask(self, rule: Rule, standing: _Standing, record: StepRecord) -> Finding | None:
        """Returns what one rule newly raises at this record."""
        broken = record.verdict in _BROKEN
        asked = all(getattr(record, name) is not None for name in rule.needs)
        finding = rule.observe(record) if asked else None
        if broken:
            finding = finding or standing.suspected  # a run that breaks confirms what was seen just before
        if finding is None and (broken or not asked):
            return None
        patience = 1 if broken else rule.patience
        return standing.finding if _update(standing, finding, patience, record.step) else None

    @property
    def findings(self) -> list[Finding]:
        """Returns what holds now, causes before what they lead to."""
        return [f for active, f in self._reported() if active]

    @property
    def cleared(self) -> list[Finding]:
        """Returns what was raised and does not hold any more."""
        return [f for active, f in self._reported() if not active]

    def _reported(self) -> list[tuple[bool, Finding]]:
        in_order = zip(*[self._asked[optimizer] for optimizer in sorted(self._asked)], strict=True)
        return [
            (standing.active, standing.finding)
            for of_one_rule in in_order
            for _, standing in of_one_rule
            if standing.reported and standing.finding is not None
        ]


def _part_of(rule: Rule) -> Part:
    return Part(f"the rule {rule.id!r}", "it is not asked any more", foreign=not is_ours(rule))


def _update(standing: _Standing, finding: Finding | None, patience: int, step: int) -> bool:
    """Folds one answer of a rule in; tells whether the finding is to be reported now."""
    if finding is None:
        standing.held = 0
        standing.missed += 1
        if standing.missed >= patience:
            standing.active = False
        return False
    standing.held += 1
    standing.missed = 0
    standing.count += 1
    if standing.held >= patience and not standing.active:
        standing.active = True
        standing.since = standing.since if standing.reported else step
    standing.finding = replace(finding, step=standing.since if standing.active else step, count=standing.count)
    if standing.active and not standing.reported:
        standing.reported = True
        return True
    return False
