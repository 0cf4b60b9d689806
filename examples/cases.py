"""Every study with five seeds, recorded for the gallery; under an hour on two cores.

python examples/cases.py                        # all of them, to look at; make cases records them
python examples/cases.py --only gan bad_batches
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import bars, studies
from harness.data import UsageError
from harness.report import console, load
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).parent
# name of the record, script, options; the longest first, so that two workers end together
CASES = [
    ("cnn20", "cnn20.py", ["--compare"]),
    ("gan", "gan.py", ["--compare"]),
    ("activations", "activations.py", ["--compare"]),
    ("vanishing_rnn", "vanishing_rnn.py", ["--compare"]),
    ("residual_depth", "residual_depth.py", ["--compare"]),
    ("cnn20_depth", "cnn20.py", ["--sweep"]),
    ("lstm_language_model", "lstm_language_model.py", ["--mitigate", "all"]),
    ("lstm_policies", "lstm_language_model.py", ["--mitigate", "others"]),
    ("clipping_direction", "clipping_direction.py", ["--compare"]),
    ("activations_matched", "activations.py", ["--matched"]),
    ("bad_batches", "bad_batches.py", ["--compare"]),
    ("gan_dense", "gan.py", ["--net", "dense"]),
    ("vanishing_rnn_layers", "vanishing_rnn.py", ["--stacked"]),
    ("vanishing_rnn_powers", "vanishing_rnn.py", ["--powers"]),
    ("init_scale", "init_scale.py", []),
    ("init_scale_scalar", "init_scale.py", ["--scalar"]),
    ("init_scale_sigmoid", "init_scale.py", ["--sigmoid"]),
]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="studies at a time, one core each (default: 2)")
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="some of the studies, by the name of their record")
    parser.add_argument(
        "--record", type=Path, default=Path("runs/cases"), metavar="FOLDER", help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    for option, count in (("--seeds", args.seeds), ("--jobs", args.jobs)):
        if count < 1:
            raise UsageError(f"{option} must be at least 1, got {count}")
    unknown = set(args.only or []) - {name for name, _, _ in CASES}
    if unknown:
        raise UsageError(f"unknown study {sorted(unknown)[0]!r}: choose from {', '.join(name for name, _, _ in CASES)}")
    chosen = [case for case in CASES if not args.only or case[0] in args.only]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = []
    with tempfile.TemporaryDirectory() as logs, Progress(*columns) as progress, ThreadPoolExecutor(args.jobs) as pool:
        task = progress.add_task("studies", total=len(chosen))

        def run(case: tuple[str, str, list[str]]) -> None:
            name, script, options = case
            start = time.perf_counter()
            command = [sys.executable, str(HERE / script), *options, "--seeds", str(args.seeds)]
            done = subprocess.run(
                [*command, "--record", str(args.record), "--logdir", logs], capture_output=True, text=True, check=False
            )
            if done.returncode:
                failed.append(name)
            ending = "" if not done.returncode else f"failed:\n{done.stderr[-2000:]}"
            progress.console.print(f"{name}: {time.perf_counter() - start:.0f} s {ending}", markup=False)
            progress.advance(task)

        list(pool.map(run, chosen))
    missed = verdict(args.record, [name for name, _, _ in chosen if name not in failed])
    return 1 if failed or missed else 0


def verdict(folder: Path, names: Sequence[str]) -> int:
    """Prints what each study had to show and what it showed; returns how many statements do not hold."""
    table = Table("study", "has to show", "measured", "", title="Bars", title_justify="left")
    missed = 0
    for name in names:
        study, _ = load(folder / f"{name}.json")
        for bar, measured, holds in bars.of(study):
            table.add_row(name, bar.says, measured, "holds" if holds else "MISSED")
            missed += not holds
    console().print(table)
    return missed


if __name__ == "__main__":
    studies.run(lambda: sys.exit(main()))
