"""``gradguard report``: how the runs below a log folder went, for the terminal, for CI, and as a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lightning_gradguard.hindsight.advice import advise
from lightning_gradguard.report.console import show_run, show_table
from lightning_gradguard.report.files import write_whole
from lightning_gradguard.report.markdown import runs_markdown
from lightning_gradguard.report.offline import Unreadable, read_pictures
from lightning_gradguard.report.page import build_page
from lightning_gradguard.report.picture import Picture
from lightning_gradguard.report.summary import SEVERITIES, Summary, summarize

_ENOUGH = 20  # steps that tell anything of a run

_EXIT = """exit status:
  0  the runs were read, and --fail-on, if given, found nothing
  1  --fail-on found a run with such a finding
  2  a run cannot be read (it is named), or there is nothing to report on
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 with ``--fail-on``, 2 for what cannot be read."""
    options = _parser().parse_args(argv)
    out = options.out or (Path("report.html") if options.format == "text" else None)
    title = f"Gradients of {options.logdir.resolve().name}"
    try:
        pictures, unreadable = read_pictures(options.logdir)
        if out is not None and pictures:
            drawn = [picture for picture in pictures if picture.flow.layers]
            write_whole(out, build_page(drawn, title, {run.run: run.reason for run in unreadable}))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for run in unreadable:
        print(f"report: {run.run} cannot be read: {run.reason}", file=sys.stderr)
    summaries = [summarize(picture) for picture in pictures]
    _FORMATS[options.format](summaries, unreadable, title)
    if options.format != "json":
        print_clips(pictures)
    if out is not None and pictures:
        print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    if options.fail_on is not None and any(is_as_grave(summary, options.fail_on) for summary in summaries):
        return 1
    return 2 if unreadable else 0


def is_as_grave(summary: Summary, severity: str) -> bool:
    """Whether a run has a finding of this severity or a graver one."""
    return summary.gravest is not None and SEVERITIES.index(summary.gravest.severity) >= SEVERITIES.index(severity)


def print_runs(summaries: Sequence[Summary], console: Console) -> None:
    """A line for each run, then those with findings in words."""
    if not summaries:
        return
    console.print(show_table(summaries))
    for summary in summaries:
        if summary.findings:
            console.print(show_run(summary, title=f"{summary.name}:"))


def print_clips(pictures: Sequence[Picture]) -> None:
    """A line for each run whose steps are all known: which clip its norms ask for, and why."""
    for picture in pictures:
        if picture.series is not None and len(picture.series) >= _ENOUGH:
            which = "" if picture.optimizer == 0 else f", optimizer {picture.optimizer}"
            print(f"Which clip for {picture.run}{which}? {advise(picture.series)} `gradguard whatif` tries others.\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradguard report",
        description="Tells how the gradients of training runs went: a table over the runs, findings with what to do "
        "about them, and one self-contained HTML page.",
        epilog=_EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("logdir", type=Path, help="folder of runs, of any logger; or one JSONL file")
    parser.add_argument("--out", type=Path, help="the page (default: report.html for text; none for md and json)")
    parser.add_argument(
        "--format", choices=sorted(_FORMATS), default="text", help="what is printed: text, md for a pull request, json"
    )
    parser.add_argument(
        "--fail-on", choices=("critical", "warning"), help="exit with 1 if a run has a finding as grave as this"
    )
    return parser


def _print_text(summaries: Sequence[Summary], unreadable: Sequence[Unreadable], title: str) -> None:
    print_runs(summaries, Console(highlight=False))


def _print_markdown(summaries: Sequence[Summary], unreadable: Sequence[Unreadable], title: str) -> None:
    print(runs_markdown(summaries, unreadable, title), end="")


def _print_json(summaries: Sequence[Summary], unreadable: Sequence[Unreadable], title: str) -> None:
    content = {
        "title": title,
        "runs": [summary.as_json() for summary in summaries],
        "unreadable": [{"run": run.run, "reason": run.reason} for run in unreadable],
    }
    print(json.dumps(content, indent=1, allow_nan=False))


_FORMATS: dict[str, Callable[[Sequence[Summary], Sequence[Unreadable], str], None]] = {
    "text": _print_text,
    "md": _print_markdown,
    "json": _print_json,
}
