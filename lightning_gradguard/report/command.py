"""``python -m lightning_gradguard report``: the *Gradient flow* tab as a file, and a summary in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_gradguard.report.offline import Picture, read_pictures
from lightning_gradguard.report.page import build_page
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, STEP_STATS

_COLOUR = {"critical": "red", "warning": "yellow", "info": "blue"}
_SHOWN_LAYERS = 12
_BAR = 24


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status, 2 where there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_gradguard report",
        description="Writes one self-contained HTML page about the gradients of training runs, and prints a summary.",
    )
    parser.add_argument("logdir", type=Path, help="folder of TensorBoard event files or JSONL files; or a JSONL file")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    options = parser.parse_args(argv)
    left_out: list[str] = []
    try:
        pictures = read_pictures(options.logdir, left_out)
        write_whole(options.out, build_page(pictures, f"Gradients of {options.logdir.resolve().name}"))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for reason in left_out:
        print(f"report: left out: {reason}", file=sys.stderr)
    console = Console()
    print_summary(pictures, console)
    console.print(f"Wrote [bold]{escape(str(options.out))}[/bold] ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 0


def print_summary(pictures: Sequence[Picture], console: Console) -> None:
    """Prints a line for each run, the depth profile of those with findings, and the findings with their remedies.

    Per run: last step, layers, median and largest total norm, share of clipped steps, bad steps, spikes, findings.
    """
    table = Table(title="Gradients", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for name in ("steps", "layers", "norm", "largest", "clipped", "bad", "spikes", "findings"):
        table.add_column(name, justify="right", no_wrap=True)
    for picture in pictures:
        table.add_row(*_line(picture))
    console.print(table)
    for picture in pictures:
        if picture.events["findings"]:
            console.print(_profile(picture))
            _print_findings(picture, console)


def _line(picture: Picture) -> list[str]:
    head = picture.flow.matrices[:, :HEAD_ROWS].reshape(len(picture.flow.steps), -1)
    step = dict(zip(STEP_STATS, head.T, strict=True))
    finite = step["total_norm"][np.isfinite(step["total_norm"])]
    counts = picture.events["counts"]
    bad = counts.get("nonfinite", 0) + counts.get("rollback", 0)
    has_policy = (step["coefficient"] >= 0).any()
    clipped = step["num_clipped"].sum() / max(1.0, step["num_steps"].sum())
    findings = len(picture.events["findings"])
    return [
        escape(_name(picture)),
        f"{picture.flow.steps[-1]:,}",
        str(len(picture.flow.layers)),
        f"{np.median(finite):.3g}" if len(finite) else "-",
        f"{finite.max():.3g}" if len(finite) else "-",
        f"{clipped:.1%}" if has_policy else "-",
        f"[red]{bad}[/red]" if bad else "0",
        str(counts.get("spike", 0)),
        f"[yellow]{findings}[/yellow]" if findings else "0",
    ]


def _name(picture: Picture) -> str:
    return picture.run if picture.optimizer == 0 else f"{picture.run} opt{picture.optimizer}"


def _profile(picture: Picture) -> Table:
    """Median norm of the layers over the run, input first, with a bar on a logarithmic scale."""
    norms = picture.flow.matrices[:, HEAD_ROWS:, 0]
    finite = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    rows = [
        (layer, float(np.median(known)) if len(known := finite[:, i][~np.isnan(finite[:, i])]) else None)
        for i, layer in enumerate(picture.flow.layers)
    ]
    shown = [
        rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SHOWN_LAYERS)).round().astype(int))
    ]
    logs = [np.log10(norm) for _, norm in shown if norm is not None]
    low, high = (min(logs), max(logs)) if logs else (0.0, 1.0)
    table = Table(
        title=escape(f"{_name(picture)}: median gradient norm, input first"), title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("layer", overflow="fold")
    table.add_column("norm", justify="right")
    table.add_column("log scale")
    for layer, norm in shown:
        if norm is None:
            table.add_row(escape(layer), "none", "")
            continue
        share = (np.log10(norm) - low) / (high - low) if high > low else 1.0
        table.add_row(escape(layer), f"{norm:.2e}", "█" * (1 + round(share * (_BAR - 1))))
    return table


def _print_findings(picture: Picture, console: Console) -> None:
    for finding in picture.events["findings"]:
        colour = _COLOUR[finding["severity"]]
        console.print(f"[{colour}]{finding['severity']}[/{colour}] [bold]{escape(finding['rule'])}[/bold]")
        console.print(f"  {escape(finding['message'])}")
        for number, remedy in enumerate(finding["remedies"], start=1):
            console.print(f"  {number}. {escape(remedy)}")
    console.print()


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name in the same folder, then renames it: no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
