"""What a rule is, and the bookkeeping that turns what rules say into findings a person can trust."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_gradguard.arguments import show_arguments
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.diagnose.state import memory_of, remember
from lightning_gradguard.harmless.part import Part, is_ours
from lightning_gradguard.record import Finding, Findings, LastWeights, Severity, StepRecord


class Rule(ABC):
    """Looks at records, one after the other, and says what is wrong, if anything is.

    A rule keeps what it must remember itself, and gets records only. Persistence is not its business:
    :class:`Diagnosis` raises a finding when it has held for ``patience`` records in a row, writes what the rule
    remembers into the checkpoint (every attribute but the constructor's arguments), and sees to it that nothing is
    called critical in a run that learns.

    Attributes:
        id: stable name, as users see it and silence it, and the anchor in ``docs/diagnosis.md``.
        patience: records in a row for which a finding must hold before it is raised.
        needs: fields of the record without which the rule is not asked: such a record neither confirms nor clears.
        scope: ``"optimizer"`` if the rule looks at one optimizer (each gets its own copy of the rule), ``"run"`` if
            it compares them.
        harmless_if_learning: whether what it finds is a mere fact, *info*, while the loss falls; before that is known
            what the rule calls critical is a warning, and what it calls a warning is *info*.
        sees_bad_steps: whether it is shown records of steps that were not finite; they enter no other statistic.
        sees_missing_steps: whether it is shown records that tell of no step: no gradient, or nobody stepped.
        tallies: whether it counts on, so that a standing finding always shows the latest count. Others show what held
            when they were raised, not what came after it. A tally is reported anew when it has held for 2, 4, 8 …
            records.
    """

    id: str
    patience: int = 3
    needs: tuple[str, ...] = ()
    scope: Literal["optimizer", "run"] = "optimizer"
    harmless_if_learning: bool = False
    sees_bad_steps: bool = False
    sees_missing_steps: bool = False
    tallies: bool = False

    def __repr__(self) -> str:
        return show_arguments(self)

    @abstractmethod
    def observe(self, record: StepRecord) -> Finding | None:
        """Returns the finding that holds at this record, or ``None``."""


# Steps that did not go through because of their gradients; "overflow" is the loss scaler's routine.
_BROKEN = ("skipped", "nonfinite", "rolled_back")
_RANK: dict[Severity, int] = {"info": 0, "warning": 1, "critical": 2}


@dataclass
class _Standing:
    """How one rule stands with one optimizer."""

    held: int = 0  # records in a row that confirmed it
    missed: int = 0  # records in a row that did not
    count: int = 0  # records that confirmed it, ever
    finding: Finding | None = None  # what it says: once raised, what held then
    said: Finding | None = None  # what the rule said last, with the severity that it gave
    since: int = 0  # step at which it was raised
    active: bool = False
    reported: bool = False

    @property
    def suspected(self) -> Finding | None:
        """What the rule said of the last record that it was asked about."""
        return self.said if self.held else None


@dataclass
class _Watch:
    """What is kept of one optimizer."""

    asked: list[tuple[Rule, _Standing]]
    progress: Progress
    broken: int = 0  # records of bad steps in a row
    breaks: bool = False  # whether the run breaks at the last record: not a single bad batch of one that learns

    def take_in(self, record: StepRecord) -> None:
        """Takes note of how training goes."""
        self.progress.add(record)
        self.broken = self.broken + 1 if record.verdict in _BROKEN else 0
        self.breaks = self.broken > 1 or (self.broken == 1 and self.progress.state != "learns")


class Diagnosis:
    """Shows records to the rules, and keeps what they found.

    A finding is raised once it has held for the rule's ``patience`` in a row, is reported once, counts on while it
    holds, and clears itself when it has not held for as long. It says what held when it was raised. It is reported
    anew when its severity changes, since that is earned: nothing is critical while the loss falls, and what may well
    be harmless is *info* then. A run that breaks confirms at once what held just before:
    it leaves no time for patience.

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
        if isinstance(silence, str):
            raise TypeError(f"silence must be a sequence of rule ids, got the string {silence!r}; write ({silence!r},)")
        ids = [rule.id for rule in rules]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"rule ids must differ, got {twice!r} twice")
        unknown = sorted(set(silence) - set(ids))
        if unknown:
            raise ValueError(f"cannot silence {unknown}: the rules are {ids}")
        self._rules = [rule for rule in rules if rule.id not in silence]
        self._parts = {rule.id: _part_of(rule) for rule in rules}
        self._memories = {rule.id: _memory_of(rule) for rule in rules}
        self._watches: dict[int, _Watch] = {}  # by optimizer
        self._weights = LastWeights()

    def __repr__(self) -> str:
        more = f", … {len(self._rules)} in all" if len(self._rules) > 3 else ""
        return f"Diagnosis(rules=[{', '.join(map(repr, self._rules[:3]))}{more}])"

    def observe(self, record: StepRecord) -> tuple[Finding, ...]:
        """Shows one record to every rule; one without weight norms gets the last known ones.

        Returns:
            What is news at this record, to be attached to it: findings that are raised, whose severity changed, or
            that have cleared (these carry the step in ``until``).
        """
        record = self._weights.fill(record)
        watch = self._watch(record.optimizer)
        watch.take_in(record)
        news = [
            self._parts[rule.id].run(self._ask, place, rule, standing, watch, record)
            for place, (rule, standing) in enumerate(watch.asked)
        ]
        return tuple(finding for finding in news if finding is not None)

    def _ask(self, place: int, rule: Rule, standing: _Standing, watch: _Watch, record: StepRecord) -> Finding | None:
        """What is news of one rule at this record."""
        asked = all(getattr(record, name) is not None for name in rule.needs)
        asked = asked and (rule.sees_bad_steps or _is_finite(record))
        asked = asked and (rule.sees_missing_steps or record.num_steps > 0)
        finding = rule.observe(record) if asked else None
        counts = asked and rule.tallies  # it was shown the bad steps themselves: what it says of them holds
        if watch.breaks and not counts:
            finding = finding or standing.suspected  # a run that breaks confirms what was seen just before
        if finding is None and not counts and (watch.broken or not asked):
            return None
        if finding is not None:
            standing.said = finding
            severity = _earned(rule, finding.severity, watch.progress, record)
            finding = replace(finding, severity=severity, place=place)
        patience = 1 if watch.breaks else rule.patience
        return standing.finding if _update(standing, finding, patience, record.step, renew=rule.tallies) else None

    def _watch(self, optimizer: int) -> _Watch:
        if optimizer not in self._watches:
            copies = [rule if rule.scope == "run" else copy.deepcopy(rule) for rule in self._rules]
            self._watches[optimizer] = _Watch([(rule, _Standing()) for rule in copies], Progress())
        return self._watches[optimizer]

    @property
    def findings(self) -> list[Finding]:
        """What holds now: causes before what they lead to, and mere facts (*info*) behind them."""
        return Findings(by_cause([f for active, f in self._reported() if active]))

    @property
    def cleared(self) -> list[Finding]:
        """What was raised and does not hold any more, in the same order."""
        return Findings(by_cause([f for active, f in self._reported() if not active]))

    def _reported(self) -> list[tuple[bool, Finding]]:
        in_order = zip(*[self._watches[optimizer].asked for optimizer in sorted(self._watches)], strict=True)
        return [
            (standing.active, standing.finding)
            for of_one_rule in in_order
            for _, standing in of_one_rule
            if standing.reported and standing.finding is not None
        ]

    def state_dict(self) -> dict[str, Any]:
        """What rules remember and what stands, as plain values: a resumed run finds what it would have found.

        A rule that remembers what no checkpoint can hold is left out of it, and says so once.
        """
        return {
            "weights": memory_of(self._weights),
            "optimizers": {
                str(optimizer): {
                    "broken": watch.broken,
                    "progress": memory_of(watch.progress),
                    "rules": {
                        rule.id: kept
                        for rule, standing in watch.asked
                        if (kept := self._memories[rule.id].run(_kept, rule, standing)) is not None
                    },
                }
                for optimizer, watch in self._watches.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; rules that it does not know start fresh."""
        remember(self._weights, state["weights"])
        for optimizer, kept in state["optimizers"].items():
            watch = self._watch(int(optimizer))
            watch.broken = kept["broken"]
            remember(watch.progress, kept["progress"])
            for rule, standing in watch.asked:
                if rule.id in kept["rules"]:
                    self._memories[rule.id].run(_take_up, rule, standing, kept["rules"][rule.id])


def _part_of(rule: Rule) -> Part:
    return Part(f"the rule {rule.id!r}", "it is not asked any more", foreign=not is_ours(rule))


def _memory_of(rule: Rule) -> Part:
    return Part(f"the memory of the rule {rule.id!r}", "it begins anew in a run that is resumed")


def _kept(rule: Rule, standing: _Standing) -> list[dict[str, Any]]:
    return [memory_of(rule), memory_of(standing)]


def _take_up(rule: Rule, standing: _Standing, kept: Sequence[Mapping[str, Any]]) -> None:
    for thing, memory in zip((rule, standing), kept, strict=True):
        remember(thing, memory)


def by_cause(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in the order in which they are told: as they come, causes first, but mere facts last."""
    return sorted(findings, key=lambda finding: finding.severity == "info")


def _is_finite(record: StepRecord) -> bool:
    """Whether the step is one that other rules may learn from."""
    return record.verdict not in (*_BROKEN, "overflow") and math.isfinite(record.total_norm)


def _earned(rule: Rule, severity: Severity, progress: Progress, record: StepRecord) -> Severity:
    """The severity that a finding has earned, given how training goes."""
    state = progress.state
    if record.num_optimizers > 1 and state in ("stalls", "rises") and not progress.is_broken:
        state = "unknown"  # losses that work against each other do not tell how training goes
    if rule.harmless_if_learning and state in ("learns", "unknown"):
        return "warning" if state == "unknown" and severity == "critical" else "info"
    return "warning" if state == "learns" and severity == "critical" else severity


def _update(standing: _Standing, finding: Finding | None, patience: int, step: int, *, renew: bool) -> bool:
    """Folds one answer of a rule in; tells whether there is news to report."""
    if finding is None:
        standing.held = 0
        standing.missed += 1
        clears = standing.active and standing.missed >= patience
        if clears and standing.finding is not None:
            standing.active = False
            standing.finding = replace(standing.finding, until=step)
        return clears and standing.reported
    before = standing.finding if standing.active else None
    standing.held += 1
    standing.missed = 0
    standing.count += 1
    if standing.held >= patience and not standing.active:
        standing.active = True
        standing.since = standing.since if standing.reported else step
    if before is not None and not renew and before.severity == finding.severity:
        finding = before  # what held when it was raised, not what came after
    standing.finding = replace(finding, step=standing.since if standing.active else step, count=standing.count)
    counts_on = before is not None and before.message != finding.message and standing.count & (standing.count - 1) == 0
    news = standing.active and (before is None or before.severity != finding.severity or counts_on)
    standing.reported = standing.reported or news
    return news
