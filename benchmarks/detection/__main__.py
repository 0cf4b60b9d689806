"""How well the rules tell sick runs from healthy ones, and name what is wrong.

    python -m benchmarks.detection                     every kind, recorded (half an hour on one core)
    python -m benchmarks.detection --keep-metrics      the same, with the metrics of further seeds as they were recorded
    python -m benchmarks.detection --quick             one seed, every third kind; records nothing
    python -m benchmarks.detection --only GAN          the kinds whose name holds that word; records nothing
    python -m benchmarks.detection --made-on           one half; records nothing
    python -m benchmarks.detection --recorded          the tables of what was recorded

Each run is a Trainer with ``GradGuard()`` at its defaults, as long as a user would wait on so small a thing. A fault
counts as one only if the run ends worse than its healthy twin, by a metric on held-out data, over several seeds. The
kinds are in two halves: those that rules are made on, and those that no rule was looked at with. Rules look at the
first seeds; the others are run for their metric alone, which is the same whatever the rules are. The same runs are
shown to published rule sets. The first remedy of the first finding is carried out where that needs no reader of code.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lightning_gradguard.diagnose import default_rules

from . import recorded
from .kind import Kind
from .measure import Job, Result, carry_out_all
from .tables import cases, tables
from .zoo import HALVES

SEEDS = (0, 1, 2)
NUM_DIAGNOSED = 1  # of these seeds


def jobs(kinds: Iterable[Kind], seeds: Sequence[int]) -> list[Job]:
    """The runs of some kinds; remedies are tried on the first seed."""
    return [
        Job(kind.name, name, seed, index < NUM_DIAGNOSED, remedy=name is not None and index == 0)
        for index, seed in enumerate(seeds)
        for kind in kinds
        for name in (None, *[fault.name for fault in kind.faults])
    ]


def measure(work: Sequence[Job], processes: int, kept: Sequence[Result] = (), save: Path | None = None) -> list[Result]:
    """Makes all runs and tells how far it is; adds them to what is ``kept``, and to a file as they come."""
    results = list(kept)
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        task = progress.add_task("runs", total=len(work))
        for result in carry_out_all(work, processes):
            results.append(result)
            if save is not None:
                with save.open("a", encoding="utf-8") as lines:
                    lines.write(recorded.line(result) + "\n")
            progress.update(task, advance=1, description=f"{result.kind[:40]:40s}")
            if not console.is_terminal and progress.tasks[0].completed % 25 == 0:
                console.print(f"{progress.tasks[0].completed:.0f} of {len(work)} runs")
    return results


def _key(result: Result) -> tuple[str, str | None, int, bool]:
    return result.kind, result.fault, result.seed, result.diagnosed


def heading(results: Sequence[Result], seeds: Sequence[int]) -> str:
    spent = sum(result.seconds for result in results)
    return (
        f"{len(results)} runs, seeds {', '.join(map(str, seeds))}; defaults of the library; torch {torch.__version__}, "
        f"{platform.machine()}, one thread, {spent / 60:.0f} minutes of runs; {time.strftime('%Y-%m-%d')}"
    )


def show(record: recorded.Record) -> None:
    console = Console(width=170)
    console.print(record.heading)
    for title, (_, (header, rows)) in tables(cases(record.results), record.rules).items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*[cell.replace("**", "").replace("<br>", "\n") for cell in row])
        console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", default="", metavar="KIND", help="kinds whose name holds this")
    parser.add_argument("--made-on", action="store_true", help="only the kinds that rules are made on")
    parser.add_argument("--unseen", action="store_true", help="only the kinds that no rule was made on")
    parser.add_argument("--quick", action="store_true", help="the first seed of every third kind")
    parser.add_argument("--keep-metrics", action="store_true", help="do not repeat recorded runs that no rule sees")
    parser.add_argument("--save", type=Path, help="add each run to this file; what is in it is not repeated")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    parser.add_argument("--recorded", action="store_true", help="show what was recorded, run nothing")
    args = parser.parse_args(argv)
    if args.recorded:
        show(recorded.read())
        return
    halves = [half for half, wanted in zip(HALVES, (not args.unseen, not args.made_on), strict=True) if wanted]
    kinds = [kind for half in halves for kind in HALVES[half] if args.only.lower() in kind.name.lower()]
    seeds = args.seeds[:1] if args.quick else args.seeds
    work = jobs(kinds[::3] if args.quick else kinds, seeds)
    if not work:
        sys.exit(
            f"no kind is called {args.only!r}; there are: {', '.join(k.name for ks in HALVES.values() for k in ks)}"
        )
    wanted = {(job.kind, job.fault, job.seed, job.diagnosed) for job in work}
    kept = recorded.lines(args.save) if args.save and args.save.exists() else []
    kept += [r for r in recorded.read().results if not r.diagnosed] if args.keep_metrics else []
    kept = list({_key(result): result for result in kept if _key(result) in wanted}.values())
    known = set(map(_key, kept))
    work = [job for job in work if (job.kind, job.fault, job.seed, job.diagnosed) not in known]
    results = measure(work, args.processes, kept, args.save)
    record = recorded.Record(heading(results, seeds), [rule.id for rule in default_rules()], results)
    show(record)
    if not (args.only or args.quick or args.made_on or args.unseen) and tuple(seeds) == SEEDS:
        recorded.write(record)


if __name__ == "__main__":
    main()
