"""Runs and findings for a notebook: a few lines of HTML with no style of their own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from lightning_gradguard.record import Finding
from lightning_gradguard.report.summary import Summary, plural


def run_html(summaries: Sequence[Summary], title: str) -> str:
    """A run: its counts, and its findings with what to do."""
    if not summaries:
        return f"<p><b>{html.escape(title)}</b>: no records yet</p>"
    parts = []
    for summary in summaries:
        name = title if len(summaries) == 1 else f"{title}, optimizer {summary.optimizer}"
        parts.append(f"<p><b>{html.escape(name)}</b>: {html.escape(summary.counts)}.</p>")
        parts.append(findings_html(summary.findings))
    return "".join(parts)


def findings_html(findings: Iterable[Finding]) -> str:
    """Findings as a list, the gravest words in bold; one sentence if there are none."""
    items = "".join(f"<li>{_item(finding)}</li>" for finding in findings)
    return f"<ul>{items}</ul>" if items else "<p>Nothing to report.</p>"


def _item(finding: Finding) -> str:
    remedies = "".join(f"<li>{html.escape(remedy)}</li>" for remedy in finding.remedies)
    held = f", held for {plural(finding.count, 'record')}" if finding.count > 1 else ""
    return (
        f"<b>{finding.severity}: {html.escape(finding.rule)}</b> (since step {finding.step}{held})<br>"
        f"{html.escape(finding.message)}" + (f"<ol>{remedies}</ol>" if remedies else "")
    )
