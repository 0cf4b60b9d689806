"""``gradguard report``: how the runs below a log folder went, for the terminal, for CI, and as a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lightning_gradguard.report.console import show_run, show_table
from lightning_gradguard.report.files import write_whole
from lightning_gradguard.report.markdown import runs_markdown
from lightning_gradguard.report.options import log_parser
from lightning_gradguard.report.page import build_page
from lightning_gradguard.report.picture import Picture
from lightning_gradguard.report.runs import Unreadable, read_runs
from lightning_gradguard.report.summary import SEVERITIES, Summary, summarize
from lightning_gradguard.report.which_clip import WhichClip, which_clips
from lightning_gradguard.tensorboard.events import finite

_EXIT = """exit status:
  0  the runs were read, and --fail-on, if given, found nothing
  1  --fail-on found a run with such a finding
  2  a run cannot be read (it is named), or there is nothing to report on
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 with ``--fail-on``, 2 for what cannot be read."""
    options = _parser().parse_args(argv)
    out = options.out or (Path("report.html") if options.format == "text" else None)
    try:
        report = read_report(options.logdir)
        if out is not None and report.summaries:
            write_whole(out, report.page())
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for run in report.unreadable:
        print(f"report: {run.run} cannot be read: {run.reason}", file=sys.stderr)
    _FORMATS[options.format](report)
    if out is not None and report.summaries:
        print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    if options.fail_on is not None and any(is_as_grave(summary, options.fail_on) for summary in report.summaries):
        return 1
    return 2 if report.unreadable else 0


@dataclass(frozen=True)
class Report:
    """What is told of the runs below a log folder.

    Attributes:
        title: in a line.
        pictures: of each run and optimizer.
        summaries: likewise.
        clips: which clip each run asks for, where its steps are known.
        unreadable: the runs that could not be read.
    """

    title: str
    pictures: list[Picture]
    summaries: list[Summary]
    clips: list[WhichClip]
    unreadable: list[Unreadable]

    def page(self) -> str:
        """Returns the page of all of it."""
        drawn = [picture for picture in self.pictures if picture.flow.layers]
        unreadable = {run.run: run.reason for run in self.unreadable}
        return build_page(drawn, self.title, unreadable, clips=[clip.html() for clip in self.clips])


def read_report(logdir: Path) -> Report:
    """Returns what there is to tell of the runs below a log folder, or in one JSONL file.

    Raises:
        OSError, ValueError: if there is no such folder, or nothing in it has gradients; one line.
    """
    runs, unreadable = read_runs(logdir)
    pictures = [picture for run in runs for picture in run.pictures]
    return Report(
        title=f"Gradients of {logdir.resolve().name}",
        pictures=pictures,
        summaries=[summarize(picture) for picture in pictures],
        clips=which_clips(runs),
        unreadable=unreadable,
    )


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


def _parser() -> argparse.ArgumentParser:
    parser = log_parser(
        "report",
        "Tells how the gradients of training runs went: a table over the runs, findings with what to do about them, "
        "which clip each run asks for, and one self-contained HTML page.",
        _EXIT,
        formats=_FORMATS,
        printed="what is printed: text, md for a pull request, json",
    )
    parser.add_argument("--out", type=Path, help="the page (default: report.html for text; none for md and json)")
    parser.add_argument(
        "--fail-on", choices=("critical", "warning"), help="exit with 1 if a run has a finding as grave as this"
    )
    return parser


def _print_text(report: Report) -> None:
    print_runs(report.summaries, Console(highlight=False))
    for clip in report.clips:
        print(clip.text(), end="\n\n")


def _print_markdown(report: Report) -> None:
    print(runs_markdown(report.summaries, report.unreadable, report.title), end="")
    for clip in report.clips:
        print(f"\n{clip.markdown()}")


def _print_json(report: Report) -> None:
    content = {
        "title": report.title,
        "runs": [summary.as_json() for summary in report.summaries],
        "whatif": [clip.as_json() for clip in report.clips],
        "unreadable": [{"run": run.run, "reason": run.reason} for run in report.unreadable],
    }
    print(json.dumps(finite(content), indent=1, allow_nan=False))


_FORMATS: dict[str, Callable[[Report], None]] = {
    "text": _print_text,
    "md": _print_markdown,
    "json": _print_json,
}
