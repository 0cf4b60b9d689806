"""Writes the cost tables of README and docs/performance.md from the recorded results.

python -m benchmarks.readme [--check]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.overhead import CLIPPED, CLIPPING, DEFAULT, LOGGED
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
FIRST, SECOND = machine.RESULTS / "overhead.json", machine.RESULTS / "overhead-again.json"
COLUMNS = ("cnn20", "lstm", "gan", "cnn", "mlp", "gpt")  # small ones first: what most readers have
AGC = "AGC(), unit by unit"
ROWS = [
    CLIPPING,
    DEFAULT,
    "everything on, nothing to clip",
    CLIPPED,
    "everything on, incidents armed",
    LOGGED,
    AGC,
    "timm's adaptive_clip_grad",
    "ZClip's own callback",
    "`.item()` and `add_scalar` per parameter",
    "`isfinite().all()` per parameter",
]
# In multiples of clipping, for each workload: what was aimed at before it was built; nothing where it is not named.
TARGETS: dict[str, dict[str, float]] = {
    DEFAULT: {"cnn20": 1.0, "lstm": 1.0, "gan": 1.0, "cnn": 0.75, "mlp": 0.35, "gpt": 0.55},
    CLIPPED: {"cnn": 0.95, "mlp": 0.95, "gpt": 0.95},
    LOGGED: {"cnn": 1.2},
    AGC: {"cnn": 1.5, "mlp": 0.9, "gpt": 1.5},
}
_SHARE = 0.03  # of a step, at most, that everything on was meant to add


def costs() -> str:
    """Everything beside other tools."""
    results = _read(FIRST)
    names = COLUMNS
    header = ["CPU time added to a step", *[f"{WORKLOADS[name][0]}, {results['sizes'][name]}" for name in names]]
    rows = [[row, *[f"×{_cost(results, name, row):.2f}" for name in names]] for row in ROWS]
    said = f"In multiples of what `gradient_clip_val=1.0` adds. {machine.in_words(results['machine'])}"
    return f"{said}\n\n{machine.markdown_table(header, rows)}"


def targets() -> str:
    """What was aimed at, and what two runs reached: in multiples of clipping, and as a share of the step."""
    runs = [_read(path) for path in (FIRST, SECOND) if path.exists()]
    names = COLUMNS
    header = ["multiples of clipping: target → reached, in each run", *[WORKLOADS[name][0] for name in names]]
    rows = []
    for row, wanted in TARGETS.items():
        reached = [" / ".join(f"{_cost(r, name, row):.2f}" for r in runs) for name in names]
        aims = [f"{wanted[name]:.2f} → " if name in wanted else "" for name in names]
        rows.append([row, *[aim + value for aim, value in zip(aims, reached, strict=True)]])
    shares = [" / ".join(f"{_share(r, name):.1%}" for r in runs) for name in names]
    rows.append([f"{DEFAULT}, as a share of the step", *[f"{_SHARE:.0%} → {share}" for share in shares]])
    return machine.markdown_table(header, rows)


SECTIONS: dict[Path, tuple[str, Callable[[], str]]] = {
    ROOT / "README.md": ("cost table", costs),
    ROOT / "docs" / "performance.md": ("targets", targets),
}


def updated(path: Path) -> str:
    """The text of a page with its present table, between its markers."""
    name, make = SECTIONS[path]
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = path.read_text().split(begin)
    return f"{before}{begin}\n\n{make()}\n\n{end}{rest.split(end)[1]}"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _cost(results: dict[str, Any], workload: str, row: str) -> float:
    middle: float = results["in_hooks"][workload][row]["clippings"][0]
    return middle


def _share(results: dict[str, Any], workload: str) -> float:
    middle: float = results["in_hooks"][workload][DEFAULT]["step"][0]
    return middle - 1.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a table is not that of the recorded results")
    options = parser.parse_args(argv)
    for path in SECTIONS:
        text = updated(path)
        if options.check and path.read_text() != text:
            raise SystemExit(f"the table in {path.name} is not that of the results: run python -m benchmarks.readme")
        path.write_text(text)


if __name__ == "__main__":
    main()
