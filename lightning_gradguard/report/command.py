"""``python -m lightning_gradguard report``: the *Gradient flow* tab as a file, and a summary in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lightning_gradguard.report.console import show_run, show_table
from lightning_gradguard.report.files import write_whole
from lightning_gradguard.report.offline import read_pictures
from lightning_gradguard.report.page import build_page
from lightning_gradguard.report.summary import Summary, summarize


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status, 2 where there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_gradguard report",
        description="Writes one self-contained HTML page about the gradients of training runs, and prints a summary.",
    )
    parser.add_argument("logdir", type=Path, help="folder of TensorBoard event files or JSONL files; or a JSONL file")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        pictures, unreadable = read_pictures(options.logdir)
        for run in unreadable:
            print(f"report: {run.run} cannot be read: {run.reason}", file=sys.stderr)
        if not pictures:
            return 2
        write_whole(options.out, build_page(pictures, f"Gradients of {options.logdir.resolve().name}"))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    console = Console()
    print_runs([summarize(picture) for picture in pictures], console)
    console.print(f"Wrote [bold]{escape(str(options.out))}[/bold] ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 2 if unreadable else 0


def print_runs(summaries: Sequence[Summary], console: Console) -> None:
    """A line for each run, then those with findings in words."""
    console.print(show_table(summaries))
    for summary in summaries:
        if summary.findings:
            console.print(show_run(summary, title=f"{summary.name}:"))
