"""Runs as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradguard.report.console import cells
from lightning_gradguard.report.runs import Unreadable
from lightning_gradguard.report.summary import Summary, plural
from lightning_gradguard.tensorboard.diagnosis import finding_markdown

_HEAD = ("run", "steps", "norm", "largest", "clipped", "bad", "spikes", "loss", "verdict")


def runs_markdown(summaries: Sequence[Summary], unreadable: Sequence[Unreadable], title: str) -> str:
    """A summary fit for a pull request: one sentence, a table of the runs, and the findings folded away below it."""
    parts = [f"## {title}", _sentence(summaries, unreadable), _table(summaries)]
    parts += (f"✖ `{run.run}` cannot be read: {_cell(run.reason)}" for run in unreadable)
    for summary in (summary for summary in summaries if summary.findings):
        told = "\n\n".join(finding_markdown(finding) for finding in summary.findings)
        what = f"<code>{_html(summary.name)}</code>: {plural(len(summary.findings), 'finding')}"
        parts.append(f"<details><summary>{what}</summary>\n\n{told}\n\n</details>")
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(summaries: Sequence[Summary], unreadable: Sequence[Unreadable]) -> str:
    critical = sum(summary.gravest is not None and summary.gravest.severity == "critical" for summary in summaries)
    others = sum(bool(summary.findings) for summary in summaries) - critical
    said = [f"{critical} with a critical finding"] * bool(critical) + [f"{others} with lesser findings"] * bool(others)
    said += [f"{len(unreadable)} unreadable"] * bool(unreadable)
    return f"{plural(len(summaries), 'run')}: {', '.join(said) or 'nothing to report'}."


def _table(summaries: Sequence[Summary]) -> str:
    if not summaries:
        return ""
    lines = [_HEAD, ("---", *["---:"] * (len(_HEAD) - 2), "---")]
    rows = [tuple(map(_cell, cells(summary))) for summary in summaries]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*lines, *rows])


def _cell(text: str) -> str:
    """Text that stays in its cell."""
    return _html(" ".join(text.split())).replace("|", "\\|")


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
