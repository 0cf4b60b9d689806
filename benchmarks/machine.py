"""What a result was measured on, and how it is written down."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
TRIED = Path("runs/benchmarks")


def describe() -> dict[str, Any]:
    """Date, command, processor, versions and load."""
    import lightning

    return {
        "date": datetime.date.today().isoformat(),
        "command": "python -m " + " ".join([_module(sys.argv[0]), *sys.argv[1:]]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def in_words(machine: dict[str, Any]) -> str:
    """The same as a sentence."""
    return (
        f"{machine['date']}, `{machine['command']}`: {machine['processor']}, {machine['cores']} cores of which "
        f"{machine['threads']} used, load {machine['load']} at the start; Python {machine['python']}, "
        f"torch {machine['torch']}, lightning {machine['lightning']}."
    )


def median_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right of the first column."""
    align = "|".join(["---", *["---:"] * (len(header) - 1)])
    lines = [" | ".join(header), *[" | ".join(row) for row in rows]]
    return "\n".join([f"| {lines[0]} |", f"|{align}|", *[f"| {line} |" for line in lines[1:]]])


def add_record_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds ``--record`` and ``--name``: trying a benchmark leaves what is recorded as it is."""
    parser.add_argument("--name", default=name, help="of the files that are written (default: %(default)s)")
    help_text = f"write to benchmarks/results; without it what is measured goes to {TRIED}"
    parser.add_argument("--record", action="store_true", help=help_text)


def save(name: str, values: dict[str, Any], page: str, *, record: bool) -> None:
    """Writes ``<name>.json`` and ``.md`` where results are recorded, or where they are tried."""
    folder = RESULTS if record else TRIED
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page.rstrip() + "\n")


def figure_path(name: str, *, record: bool) -> Path:
    """Where a figure of the docs goes: there when it is recorded, else beside the other trials."""
    if record:
        return RESULTS.parents[1] / "docs" / name
    TRIED.mkdir(parents=True, exist_ok=True)
    return TRIED / name


def _module(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts[-2:])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
