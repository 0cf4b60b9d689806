"""From results to the tables that are printed, and stand in the documentation."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .causes import CAUSES
from .judgement import WITHIN, Twin
from .kind import Fault
from .measure import Result
from .published import RULE_SETS
from .zoo import HALVES, Half, find

Table = tuple[list[str], list[list[str]]]  # header and rows
OURS = "lightning-gradguard"
NAMES = {title: {rule.name: rule.names for rule in rules} for title, rules in RULE_SETS.items()}


@dataclass
class Case:
    """A kind, or a fault of it, over its seeds.

    Attributes:
        every: all runs, by which sick is told from healthy.
        runs: those that rules looked at.
    """

    half: Half
    kind: str
    fault: Fault | None
    every: list[Result]
    twin: Twin

    @property
    def runs(self) -> list[Result]:
        return [run for run in self.every if run.diagnosed]

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.fault.name}" if self.fault else self.kind

    @property
    def sick(self) -> bool:
        return self.fault is not None and self.twin.is_sick([run.after for run in self.every])

    @property
    def gap(self) -> float:
        return self.twin.gap(statistics.median(run.after for run in self.every))

    def named(self, run: Result) -> bool:
        return self.fault is not None and run.first in CAUSES[self.fault.cause]


def cases(results: Iterable[Result]) -> list[Case]:
    """Results by kind and fault, in the order of the zoo; a fault whose twin was not run is left out."""
    runs: dict[tuple[str, str | None], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.seed):
        runs[result.kind, result.fault].append(result)
    found = []
    for half, kinds in HALVES.items():
        for kind in kinds:
            healthy = runs.get((kind.name, None))
            if not healthy:
                continue
            twin = Twin(tuple(r.before for r in healthy), tuple(r.after for r in healthy))
            for fault in (None, *kind.faults):
                key = (kind.name, fault.name if fault else None)
                if key in runs:
                    found.append(Case(half, kind.name, find(*key)[1], runs[key], twin))
    return found


def share(part: int, whole: int) -> str:
    return f"{part}/{whole} = {part / whole:.0%}" if whole else "–"


def overall(found: Sequence[Case]) -> Table:
    """Each half: how many sick runs were flagged and named, how many healthy ones accused; and the same of others."""
    header = ["", "plain faults flagged", "cause first", "all faults flagged", "cause first", "healthy runs accused"]
    rows = []
    for half in HALVES:
        here = [case for case in found if case.half == half]
        if here:
            rows.append([f"**kinds {half}**", "", "", "", "", ""])
            rows += [_overall_row(title, here) for title in (OURS, *RULE_SETS)]
    return header, rows


def _overall_row(title: str, here: Sequence[Case]) -> list[str]:
    sick = [(case, run) for case in here if case.sick and case.fault.sight != "hidden" for run in case.runs]  # type: ignore[union-attr]
    plain = [(case, run) for case, run in sick if case.fault and case.fault.sight == "plain"]
    healthy = [(case, run) for case in here if case.fault is None for run in case.runs]
    row = [title]
    for group in (plain, sick):
        row.append(share(sum(_speaks(title, run) for _, run in group), len(group)))
        row.append(share(sum(_names(title, case, run) for case, run in group), len(group)))
    return [*row, share(sum(_speaks(title, run) for _, run in healthy), len(healthy))]


def _speaks(title: str, run: Result) -> bool:
    return bool(run.said) if title == OURS else title in run.others


def _names(title: str, case: Case, run: Result) -> bool:
    if title == OURS:
        return case.named(run)
    return case.fault is not None and case.fault.cause in NAMES[title].get(run.others.get(title, ""), ())


def sentence(found: Sequence[Case]) -> str:
    """What holds on kinds that no rule was made on, in words; nothing as long as some of them were not run."""
    here = [case for case in found if case.half == "unseen"]
    if len(here) < sum(1 + len(kind.faults) for kind in HALVES["unseen"]):
        return ""
    row = _overall_row(OURS, here)
    flagged, named, _, _, accused = (cell.split(" = ") for cell in row[1:])
    return (
        f"Of faults that people reported, in kinds of runs that no rule was made on, {flagged[-1]} are flagged "
        f"({flagged[0]}) and {named[-1]} named with the right cause first; {accused[0].replace('/', ' of ')} healthy "
        f"runs are accused."
    )


def early(found: Sequence[Case]) -> Table:
    """The share of plain faults of which something was said by a step."""
    steps = (16, 64, 150, 1_000_000)
    header = ["plain faults of which something was said", *[f"by step {s}" if s < 1e5 else "at all" for s in steps]]
    rows = []
    for half in HALVES:
        group = [r for c in found if c.half == half and c.sick and c.fault and c.fault.sight == "plain" for r in c.runs]
        if group:
            by = [sum(bool(r.said) and min(s for _, _, s in r.said) <= step for r in group) for step in steps]
            rows.append([f"kinds {half}", *(share(n, len(group)) for n in by)])
    return header, rows


def faults(found: Sequence[Case]) -> Table:
    """Each fault that hurts: what was said first and when, run by run."""
    header = ["fault", "cause", "seen", "gap", "named first", "right", "steps of the first word"]
    rows = []
    for case in found:
        if case.fault and case.sick:
            said = Counter(run.first or "nothing" for run in case.runs)
            steps = [str(min(step for _, _, step in run.said)) if run.said else "–" for run in case.runs]
            rows.append(
                [
                    case.name,
                    case.fault.cause,
                    case.fault.sight,
                    _number(case.gap),
                    ", ".join(f"{rule} {n}" if len(said) > 1 else rule for rule, n in said.items()),
                    share(sum(map(case.named, case.runs)), len(case.runs)).split(" =")[0],
                    ", ".join(steps),
                ]
            )
    return header, rows


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else "broke" if value == float("inf") else f"{value:.1g}"


def harmless(found: Sequence[Case]) -> Table:
    """Faults that did not hurt: nothing here may be called critical."""
    rows = [
        [
            case.name,
            _number(case.gap),
            "; ".join(sorted({f"{rule} ({how})" for r in case.runs for rule, how, _ in r.said})) or "–",
        ]
        for case in found
        if case.fault and not case.sick
    ]
    return ["fault that did not hurt", "gap", "what was said"], rows


def healthy(found: Sequence[Case]) -> Table:
    """Every healthy kind, how it went, and every word that was said to it."""
    rows = []
    for case in found:
        if case.fault is None:
            words = [f"seed {run.seed}, {word}" for run in case.runs for word in run.words]
            went = f"{statistics.median(case.twin.before):.3g} → {statistics.median(case.twin.after):.3g}"
            rows.append([case.name, went + ("" if case.twin.learns else " (!)"), "<br>".join(words) or "–"])
    return ["healthy kind", "metric", "every word that was said"], rows


def rules(found: Sequence[Case], ids: Sequence[str]) -> Table:
    """Each rule: of the runs with its cause, how many it was raised in; where else it was raised."""
    header = ["rule", "its faults: hits", "misses", "raised in other sick runs", "in harmless ones", "false alarms"]
    rows = []
    for rule in ids:
        counts = Counter(_sort(rule, case, run) for case in found for run in case.runs)
        whole = counts["hit"] + counts["miss"]
        hits = share(counts["hit"], whole)
        rows.append([rule, hits, *(str(counts[what]) for what in ("miss", "beside", "harmless", "false alarm"))])
    return header, rows


def _sort(rule: str, case: Case, run: Result) -> str:
    raised = any(name == rule for name, _, _ in run.said)
    if case.sick and case.fault and CAUSES[case.fault.cause][:1] == (rule,):
        return "hit" if raised else "miss"
    if not raised:
        return "silent"
    return "beside" if case.sick else "harmless" if case.fault else "false alarm"


def remedies(found: Sequence[Case]) -> Table:
    """The first remedy, where it can be applied by itself: how many then train within a tenth of the twin."""
    groups: dict[tuple[Half, str], list[bool]] = defaultdict(list)
    for case in found:
        for run in case.runs:
            if case.sick and run.remedy is not None and run.remedied is not None:
                groups[case.half, run.remedy].append(case.twin.gap(run.remedied) <= WITHIN)
    rows = []
    for half in HALVES:
        here = {remedy: worked for (of, remedy), worked in groups.items() if of == half}
        if here:
            every = [worked for group in here.values() for worked in group]
            rows.append([f"**kinds {half}**", share(sum(every), len(every))])
            rows += [[remedy, share(sum(worked), len(worked))] for remedy, worked in here.items()]
    return ["first remedy, applied by itself", f"then within {WITHIN:.0%} of the twin"], rows


def tables(found: Sequence[Case], ids: Sequence[str]) -> dict[str, tuple[str, Table]]:
    """Every table by its title, with what it shows; ``ids`` are those of the rules that looked."""
    made = {
        "Flagged and named": (overall, overall(found)),
        "How early": (early, early(found)),
        "Each rule": (rules, rules(found, ids)),
        "First remedies": (remedies, remedies(found)),
        "Faults that hurt": (faults, faults(found)),
        "Faults that do not": (harmless, harmless(found)),
        "Healthy runs": (healthy, healthy(found)),
    }
    return {title: (make.__doc__ or "", table) for title, (make, table) in made.items()}
