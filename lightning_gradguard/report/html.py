"""Runs and findings for a notebook: a few lines of HTML with no style of their own."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lightning_gradguard.record import Findings
from lightning_gradguard.report.summary import Summary


def run_html(summaries: Sequence[Summary], title: str) -> str:
    """A run: its counts, and its findings with what to do."""
    if not summaries:
        return f"<p><b>{html.escape(title)}</b>: no records yet</p>"
    parts = []
    for summary in summaries:
        name = title if len(summaries) == 1 else f"{title}, optimizer {summary.optimizer}"
        parts.append(f"<p><b>{html.escape(name)}</b>: {html.escape(summary.counts)}.</p>")
        parts.append(Findings(summary.findings)._repr_html_())
    return "".join(parts)
