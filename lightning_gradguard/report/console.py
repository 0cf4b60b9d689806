"""Prints how runs went, at the end of training and for ``report``: the same words in both."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lightning_gradguard.record import Finding
from lightning_gradguard.report.summary import Summary, plural

COLOURS = {"critical": "bold red", "warning": "yellow", "info": "cyan"}
_SHOWN_LAYERS = 12
_SHORT = 5  # findings at the end of a run; the report tells all
_FLAT = 1e-2  # weakest over strongest layer, from which on a profile is worth its lines
_BAR = 24  # characters
_DECADES = 6.0  # that the whole bar stands for: what is weaker than a millionth of the strongest has none


def show_table(summaries: Sequence[Summary]) -> RenderableType:
    """A line for each run: steps, median and largest norm, what was clipped, skipped, a spike, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for name in ("steps", "norm", "largest", "clipped", "bad", "spikes", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for summary in summaries:
        table.add_row(*(Text(cell) for cell in cells(summary)[:-1]), _verdict(summary))
    return table


def cells(summary: Summary) -> list[str]:
    """The cells of a run in a table over many: run, steps, norm, largest, clipped, bad, spikes, loss, verdict."""
    clipped = "-" if summary.clipped is None else f"{summary.clipped / max(summary.steps, 1):.1%}"
    bad = max(summary.nonfinite, summary.skipped or 0)
    return [
        summary.name,
        f"{summary.steps:,}",
        *("-" if value is None else f"{value:.3g}" for value in (summary.norm, summary.largest)),
        *(clipped, str(bad), str(summary.spikes)),
        "-" if summary.loss is None else f"{summary.loss:.3g}",
        summary.verdict,
    ]


def show_run(summary: Summary, *, title: str, short: bool = False, cleared: Collection[str] = ()) -> RenderableType:
    """One run in words: its counts, its findings with what to do, and the depth profile where that tells anything.

    Args:
        summary: how it went.
        title: what the first line begins with.
        short: whether to tell the first few findings only, each with its first remedy.
        cleared: ids of rules whose finding does not hold any more.
    """
    first = Text(title, "bold").append(f" {summary.counts}", "not bold")
    if not summary.findings:
        return first.append("." if summary.nonfinite else ". Nothing to report.", "not bold")
    first.append(f", {plural(len(summary.findings), 'finding')}:", "not bold")
    told = summary.findings[: _SHORT if short else None]
    parts = [show_finding(finding, short=short, cleared=finding.rule in cleared) for finding in told]
    if rest := summary.findings[len(told) :]:
        parts.append(Text(f"  and {', '.join(finding.rule for finding in rest)}"))
    return Group(first, *parts, *([show_profile(summary)] if _is_telling(summary) else []))


def show_finding(finding: Finding, *, short: bool = False, cleared: bool = False) -> RenderableType:
    """One finding in words: what, where it comes from, what to do; with ``short`` the first remedy, and no causes."""
    head = Text("  ").append(finding.severity, COLOURS[finding.severity]).append(f" {finding.rule}", "bold")
    if finding.count > 1 or cleared:
        head.append(f" (since step {finding.step}, held for {plural(finding.count, 'record')}", "not bold")
        over = "now over" if finding.until is None else f"over since step {finding.until}"
        head.append(f", {over})" if cleared else ")")
    return Group(head, *(Padding(line, (0, 0, 0, 4)) for line in _explained(finding, short)))


def show_profile(summary: Summary) -> Table:
    """Median norm of the layers over the run, input first, with a bar on a logarithmic scale."""
    named = {layer for finding in summary.findings for layer in finding.layers if len(finding.layers) < summary.layers}
    shown = _chosen([layer for layer, _ in summary.profile], named, _SHOWN_LAYERS)
    strongest = max((norm for _, norm in summary.profile if norm is not None), default=0.0)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("layer, input first", overflow="fold")
    table.add_column("median norm", justify="right")
    table.add_column(f"log scale, {_DECADES:.0f} decades", min_width=_BAR)
    for layer, norm in summary.profile:
        if layer in shown:
            table.add_row(Text(layer), "none" if norm is None else f"{norm:.2e}", _bar(norm, strongest))
    if len(shown) < len(summary.profile):
        rest = len(summary.profile) - len(shown)
        table.caption = f"{rest} more {'layer is' if rest == 1 else 'layers are'} not shown"
        table.caption_justify = "left"
    return table


def as_text(shown: RenderableType, width: int = 80) -> str:
    """The same as plain lines without colours, for logs and files."""
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def _is_telling(summary: Summary) -> bool:
    """Whether the profile shows more than a bar of the same length for each layer."""
    norms = [norm or 0.0 for _, norm in summary.profile]
    return bool(norms) and min(norms) < _FLAT * max(norms)


def _explained(finding: Finding, short: bool) -> Iterator[Text]:
    yield Text(finding.message)
    if finding.causes and not short:
        yield Text(f"likely: {'; '.join(finding.causes)}")
    told = finding.remedies[: 1 if short else None]
    for number, remedy in enumerate(told, start=1):
        yield Text(f"{number}. {remedy}" if len(told) > 1 else f"try: {remedy}")


def _verdict(summary: Summary) -> Text:
    colour = COLOURS[summary.gravest.severity] if summary.gravest else "red" if summary.nonfinite else "green"
    return Text(summary.verdict, colour)


def _bar(norm: float | None, strongest: float) -> Text:
    if norm is None:
        return Text("no gradient", "red")
    if norm == 0:
        return Text("zero", "red")
    filled = round(_BAR * max(0.0, 1 + math.log10(norm / strongest) / _DECADES))
    return Text("█" * filled + "·" * (_BAR - filled), "green" if filled > _BAR / 2 else "yellow" if filled else "red")


def _chosen(layers: list[str], named: set[str], limit: int) -> set[str]:
    """The layers to show: those with findings first, then evenly spread ones."""
    marked = [layer for layer in layers if layer in named]
    marked = [marked[i] for i in _spread(len(marked), limit - 2)]
    others = [layer for layer in layers if layer not in named]
    return {*marked, *(others[i] for i in _spread(len(others), limit - len(marked)))}


def _spread(count: int, room: int) -> list[int]:
    """At most ``room`` of ``count`` indices, evenly spread, the first and the last among them."""
    if count <= room:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(room - 1, 1)) for i in range(room)})
