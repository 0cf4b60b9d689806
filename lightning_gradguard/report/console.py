"""What a run's gradients looked like, as one table for the terminal."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_gradguard.diagnose.depth import execution_order
from lightning_gradguard.record import Finding, StepRecord

_BAR = 24  # characters
_DECADES = 6.0  # that the whole bar stands for: what is weaker than a millionth of the strongest has none
_COLOURS = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


def summary(records: Sequence[StepRecord], findings: Sequence[Finding], *, max_layers: int = 40) -> RenderableType:
    """Returns the table at the end of training: layers in depth order, their median norms, and what was found.

    Args:
        records: of the run, oldest first, of one or several optimizers; some hundred are as good as all.
        findings: what holds at the end, first named first.
        max_layers: rows at most, for each optimizer, >= 1; the layers of a finding are kept before others.

    Returns:
        What ``rich.print`` takes.

    Raises:
        ValueError: if ``max_layers`` is below 1.
    """
    if max_layers < 1:
        raise ValueError(f"max_layers must be at least 1, got {max_layers}")
    by_optimizer: dict[int, list[StepRecord]] = defaultdict(list)
    for record in records:
        if record.layers:
            by_optimizer[record.optimizer].append(record)
    parts: list[RenderableType] = [
        _table(group, findings, max_layers, len(by_optimizer) > 1) for _, group in sorted(by_optimizer.items())
    ]
    return Group(*parts, *(_paragraph(finding) for finding in findings))


def _table(records: list[StepRecord], findings: Sequence[Finding], max_layers: int, several: bool) -> Table:
    last = records[-1]
    norms = {last.layers[i]: _median(records, last.layers[i], i) for i in execution_order(last)}
    strongest = max((norm for norm in norms.values() if norm is not None and math.isfinite(norm)), default=0.0)
    said: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if set(finding.layers) < set(last.layers):  # one that speaks of all layers is told once, below
            for layer in finding.layers:
                said[layer].append(finding)
    shown = _chosen(list(norms), said, max_layers)
    title = f"Gradients of optimizer {last.optimizer}" if several else "Gradients"
    table = Table(
        title=f"{title}, {len(records)} records to step {last.step}", box=box.SIMPLE_HEAD, title_justify="left"
    )
    table.add_column("layer")
    table.add_column("median norm", justify="right")
    table.add_column(f"profile (log, {_DECADES:.0f} decades)", min_width=_BAR)
    table.add_column("findings")
    for layer in shown:
        norm = norms[layer]
        rules = Text(", ").join(Text(f.rule, _COLOURS[f.severity]) for f in said[layer])
        table.add_row(escape(layer), "none" if norm is None else f"{norm:.2e}", _bar(norm, strongest), rules)
    if len(shown) < len(norms):
        table.caption = f"{len(norms) - len(shown)} more layers are not shown"
    return table


def _median(records: list[StepRecord], layer: str, index: int) -> float | None:
    """Median norm of a layer over the records; ``None`` if it never had a gradient."""
    values = []
    for record in records:
        at = index if index < len(record.layers) and record.layers[index] == layer else None
        norm = record.layer_norms[at] if at is not None else None
        if norm is not None and not math.isnan(norm):
            values.append(norm)
    return statistics.median(values) if values else None


def _bar(norm: float | None, strongest: float) -> Text:
    if norm is None:
        return Text("no gradient", "red")
    if norm == 0:
        return Text("zero", "red")
    if not math.isfinite(norm) or strongest == 0:
        return Text("not finite", "red")
    filled = round(_BAR * max(0.0, 1 + math.log10(norm / strongest) / _DECADES))
    return Text("█" * filled + "·" * (_BAR - filled), "green" if filled > _BAR / 2 else "yellow" if filled else "red")


def _chosen(layers: list[str], said: dict[str, list[Finding]], max_layers: int) -> list[str]:
    """Returns the layers to show, in their order: those with findings first, then evenly spread ones."""
    if len(layers) <= max_layers:
        return layers
    marked = [layer for layer in layers if said[layer]][:max_layers]
    others = [layer for layer in layers if not said[layer]]
    room = max_layers - len(marked)
    spread = {others[round(i * (len(others) - 1) / max(room - 1, 1))] for i in range(room)} if others else set()
    keep = set(marked) | spread
    return [layer for layer in layers if layer in keep]


def _paragraph(finding: Finding) -> Text:
    """Returns one finding in words: what, where it comes from, what to do."""
    text = Text()
    text.append(f"{finding.severity}: {finding.rule}", _COLOURS[finding.severity])
    text.append(f" (since step {finding.step}, held for {finding.count} records)\n  {finding.message}\n")
    if finding.causes:
        text.append(f"  likely: {'; '.join(finding.causes)}\n")
    for number, remedy in enumerate(finding.remedies, start=1):
        text.append(f"  {number}. {remedy}\n")
    text.append(f"  docs/diagnosis.md#{finding.rule}\n", "dim")
    return text
