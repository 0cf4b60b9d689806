"""How well the rules tell sick runs from healthy ones, and name what is wrong.

    python benchmarks/detection.py            # the reported figures, on seeds never used to set a threshold
    python benchmarks/detection.py --quick    # one seed, a third of the cases

Thresholds were set on seeds 0 to 4. A seed moves the network as well: depth, width, batch size, learning rate, and how
strong the fault is. The same runs are shown to published rule sets. For one seed the first remedy of the first finding
is carried out and the run repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from detection.cases import FAULTS, Case, healthy_cases, sick_cases
from detection.cures import cured
from detection.published import RULE_SETS, Recorder, judge
from detection.training import Outcome, train
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lightning_gradguard.diagnose import Diagnosis, default_rules
from lightning_gradguard.record import Finding

CALIBRATION_SEEDS = (0, 1, 2, 3, 4)  # looked at while thresholds were set
REPORTED_SEEDS = (10, 11, 12)  # never looked at before the reported run
MORE_HEALTHY_SEEDS = (13, 14)  # likewise; healthy runs only, so that there are more of them than sick ones
REMEDY_SEED = 10
NAMED_BY = {fault.name: fault.named_by for fault in FAULTS}
PUBLISHED_NAMES = {title: {rule.name: rule.names for rule in rules} for title, rules in RULE_SETS.items()}


@dataclass
class Result:
    """What was found in one run."""

    case: str
    fault: str | None
    seed: int
    rules: list[str]  # raised, first named first
    published: dict[str, str | None]
    first_loss: float
    final_loss: float
    healthy_first_loss: float = 0.0  # of the same run without the fault
    healthy_loss: float | None = None
    remedy: str | None = None
    remedied_loss: float | None = None
    worst_message: str = ""
    seconds: float = 0.0
    named: bool = field(init=False)

    def __post_init__(self) -> None:
        self.named = self.fault is not None and bool(self.rules) and self.rules[0] in NAMED_BY[self.fault]

    def trains(self, loss: float | None) -> bool:
        """Whether a loss is as good as the healthy run's: seven tenths of its way down; near it for a GAN."""
        if loss is None or self.healthy_loss is None or not math.isfinite(loss):
            return False
        if self.case.startswith("gan"):
            return abs(loss - self.healthy_loss) < 0.35 * abs(self.healthy_loss)
        start = self.healthy_first_loss
        return loss <= start - 0.7 * (start - self.healthy_loss)


def diagnose(outcome: Outcome) -> list[Finding]:
    """All that was ever raised in a run, first named first."""
    diagnosis = Diagnosis(default_rules())
    for record in outcome.records:
        diagnosis.observe(record)
    return diagnosis.findings + diagnosis.cleared


def run(case: Case, seed: int, with_remedy: bool) -> Result:
    """One run under every rule set, and with ``with_remedy`` its healthy twin and its cure."""
    started = time.perf_counter()
    setup, healthy = case.draw(seed)
    recorder = Recorder(setup)
    outcome = train(setup, seed, recorder)
    found = diagnose(outcome)
    result = Result(
        case.name,
        case.fault,
        seed,
        [finding.rule for finding in found],
        judge(recorder.snapshots),
        outcome.first_loss * setup.sign,
        outcome.final_loss * setup.sign,
        worst_message=found[0].message if found else "",
    )
    if with_remedy and case.fault is not None:
        twin = train(healthy, seed)
        result.healthy_first_loss, result.healthy_loss = twin.first_loss, twin.final_loss
        if found:
            result.remedy = found[0].remedies[0]
            result.remedied_loss = train(cured(setup, found[0]), seed).final_loss
    result.seconds = time.perf_counter() - started
    return result


def percent(part: int, whole: int) -> str:
    return f"{part}/{whole} = {part / whole:.1%}" if whole else "–"


def overall(results: list[Result]) -> Table:
    sick, healthy = [r for r in results if r.fault], [r for r in results if not r.fault]
    table = Table("rule set", "sick runs flagged", "cause named first", "healthy runs flagged", title="All runs")
    table.add_row(
        "lightning-gradguard",
        percent(sum(bool(r.rules) for r in sick), len(sick)),
        percent(sum(r.named for r in sick), len(sick)),
        percent(sum(bool(r.rules) for r in healthy), len(healthy)),
    )
    for title, names in PUBLISHED_NAMES.items():
        table.add_row(
            title,
            percent(sum(r.published[title] is not None for r in sick), len(sick)),
            percent(sum(r.fault in names.get(r.published[title] or "", ()) for r in sick), len(sick)),
            percent(sum(r.published[title] is not None for r in healthy), len(healthy)),
        )
    return table


def by_rule(results: list[Result]) -> Table:
    table = Table(
        "rule",
        "runs with its fault",
        "recall",
        "precision",
        "raised in healthy runs",
        title="Each rule (raised anywhere)",
    )
    for rule in default_rules():
        faults = {name for name, rules in NAMED_BY.items() if rule.id in rules}
        own = [r for r in results if r.fault in faults]
        raised = [r for r in results if rule.id in r.rules]
        sick = sum(r.fault is not None for r in raised)
        table.add_row(
            rule.id,
            str(len(own)),
            percent(sum(rule.id in r.rules for r in own), len(own)),
            percent(sick, len(raised)),
            str(len(raised) - sick),
        )
    return table


def confusion(results: list[Result]) -> Table:
    named = Counter((r.fault or "healthy", r.rules[0] if r.rules else "nothing") for r in results)
    table = Table(
        "injected", "runs", "named first", title="What was named first, by what was injected (right names marked *)"
    )
    for fault in [*NAMED_BY, "healthy"]:
        row = sorted(((n, rule) for (f, rule), n in named.items() if f == fault), reverse=True)
        marked = (f"{rule}{'*' if rule in NAMED_BY.get(fault, ()) else ''} {n}" for n, rule in row)
        table.add_row(fault, str(sum(n for n, _ in row)), ", ".join(marked))
    return table


def published_by_fault(results: list[Result]) -> Table:
    table = Table("injected", "ours", *RULE_SETS, title="Flagged, by what was injected")
    groups: dict[str, list[Result]] = defaultdict(list)
    for r in results:
        groups[r.fault or "healthy"].append(r)
    for fault, group in groups.items():
        counts = [sum(r.published[title] is not None for r in group) for title in RULE_SETS]
        table.add_row(fault, *(f"{n}/{len(group)}" for n in (sum(bool(r.rules) for r in group), *counts)))
    return table


def remedies_table(results: list[Result]) -> Table:
    table = Table(
        "injected",
        "trains as it is",
        "trains after the first remedy",
        "remedies tried",
        title="Worth of the first remedy",
    )
    groups: dict[str, list[Result]] = defaultdict(list)
    for r in results:
        if r.healthy_loss is not None:
            groups[r.fault or ""].append(r)
    for fault, group in groups.items():
        tried = Counter((r.remedy or "none").split(":")[0].split(";")[0][:48] for r in group)
        table.add_row(
            fault,
            percent(sum(r.trains(r.final_loss) for r in group), len(group)),
            percent(sum(r.trains(r.remedied_loss) for r in group), len(group)),
            "; ".join(f"{text} ({n})" for text, n in tried.most_common()),
        )
    every = [r for group in groups.values() for r in group]
    table.add_row(
        "all",
        percent(sum(r.trains(r.final_loss) for r in every), len(every)),
        percent(sum(r.trains(r.remedied_loss) for r in every), len(every)),
        "",
    )
    return table


def plain(result: Result) -> dict[str, object]:
    """As strict JSON takes it: what diverged becomes a string."""
    values = {key: value for key, value in vars(result).items() if key != "named"}
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read(path: Path) -> tuple[str, list[Result]]:
    """The heading and the results of a recorded run."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    numbers = {f.name for f in fields(Result) if "float" in str(f.type)}
    results = [
        Result(**{k: float(v) if k in numbers and isinstance(v, str) else v for k, v in entry.items()})
        for entry in recorded["results"]
    ]
    return recorded["heading"], results


def measured(seeds: Sequence[int], cases: list[Case], *, with_remedies: bool) -> tuple[str, list[Result]]:
    """Trains everything, and says what that was."""
    jobs = [(case, seed) for seed in seeds for case in cases]
    results: list[Result] = []
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=len(jobs))
        for case, seed in jobs:
            progress.update(task, description=f"{case.name[:40]:40s} seed {seed}")
            results.append(run(case, seed, with_remedies and seed == seeds[0]))
            progress.advance(task)
            if not progress.console.is_terminal and len(results) % 20 == 0:
                progress.console.print(f"{len(results)} of {len(jobs)} runs, {time.perf_counter() - started:.0f} s")
    fresh = not set(seeds) & set(CALIBRATION_SEEDS)
    heading = (
        f"{len(results)} runs, seeds {', '.join(map(str, seeds))} "
        f"({'never used to set a threshold' if fresh else 'used to set thresholds: not a result'}); "
        f"torch {torch.__version__}, {platform.machine()}, one thread, "
        f"{sum(r.seconds for r in results):.0f} s; {time.strftime('%Y-%m-%d')}"
    )
    return heading, results


def show(console: Console, heading: str, results: list[Result]) -> None:
    """Prints every table."""
    console.print(heading)
    for make in (overall, by_rule, confusion, published_by_fault):
        console.print(make(results))
    if any(r.healthy_loss is not None for r in results):
        console.print(remedies_table(results))
    listing = Table("run", "seed", "named", "first finding", title="Missed, misnamed and false alarms")
    for r in results:
        if (r.fault and not r.named) or (not r.fault and r.rules):
            listing.add_row(r.case, str(r.seed), ", ".join(r.rules) or "nothing", r.worst_message)
    console.print(listing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="default: the reported seeds")
    parser.add_argument("--quick", action="store_true", help="one seed, every third case")
    parser.add_argument("--no-remedies", action="store_true")
    parser.add_argument("--only", choices=("sick", "healthy"))
    parser.add_argument("--from", dest="recorded", type=Path, nargs="+", help="tables of recorded detection.json files")
    parser.add_argument("--out", type=Path, default=None, help="folder for detection.md and detection.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.recorded:
        parts = [read(path) for path in args.recorded]
    else:
        sick = [] if args.only == "healthy" else sick_cases()
        healthy = [] if args.only == "sick" else healthy_cases()
        cases = (sick + healthy)[::3] if args.quick else sick + healthy
        seeds = args.seeds or (REPORTED_SEEDS[:1] if args.quick else REPORTED_SEEDS)
        parts = [measured(seeds, cases, with_remedies=not args.no_remedies)]
        if not (args.seeds or args.quick or args.only):
            parts.append(measured(MORE_HEALTHY_SEEDS, healthy, with_remedies=False))
    heading = "\n".join(heading for heading, _ in parts)
    results = [result for _, found in parts for result in found]
    console = Console(width=150, record=True)
    show(console, heading, results)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = f"# Detection\n\n`python benchmarks/detection.py`\n\n```text\n{console.export_text()}```\n"
        (args.out / "detection.md").write_text(text, encoding="utf-8")
        kept = {"heading": heading, "results": [plain(r) for r in results]}
        (args.out / "detection.json").write_text(json.dumps(kept, indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
