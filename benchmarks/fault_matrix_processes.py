"""One fault on one of two processes, under every strategy and action, with and without accumulation.

    python -m benchmarks.fault_matrix_processes [--record]

Each cell has a limit of time: a process that waits for another one counts as wrong.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import machine
from tests.modes.faults import ACTIONS, CELLS, FAULTS, STRATEGIES, Cell, run_alone, run_cell
from tests.modes.processes import run_together

_LIMIT = 60.0  # seconds for a fit whose processes part company


def answers() -> dict[Cell, str]:
    """What became of each cell: ``"right"``, or what the processes answered."""
    found: dict[Cell, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for strategy in STRATEGIES:
            cells = [cell for cell in CELLS if cell.strategy == strategy and not cell.parts_company]
            results = run_together(2, {str(c): partial(run_cell, cell=c) for c in cells}, folder, limit_s=400.0)
            for cell in cells:
                each = {str(answer)[-200:] for answer in results[str(cell)]}
                found[cell] = "right" if each == {cell.right} else " / ".join(sorted(each))
        for cell in (cell for cell in CELLS if cell.parts_company):
            start = time.monotonic()
            of_others = run_together(2, {str(cell): partial(run_alone, cell=cell)}, folder, limit_s=_LIMIT)[str(cell)]
            in_time = time.monotonic() - start < _LIMIT - 5.0  # gloo may end a process that waits for one that is gone
            answer = Path(folder, str(cell), "answer.txt")
            own = answer.read_text() if answer.exists() else "nothing"
            found[cell] = "right" if own == cell.right and in_time else f"{own} / {of_others[0]}"[:200]
    return found


def page(found: dict[Cell, str]) -> str:
    """The table as Markdown: a row for each strategy and fault."""
    lines = ["| strategy | fault on one process | " + " | ".join(f"{action}, x2" for action in ACTIONS) + " |"]
    lines.append("|---|---" + "|---" * len(ACTIONS) + "|")
    for strategy in STRATEGIES:
        for fault in FAULTS:
            row = [", ".join(found[Cell(strategy, fault, action, n)] for n in (1, 2)) for action in ACTIONS]
            lines.append(f"| {strategy} | {fault} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all cells, and shows the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    machine.add_record_option(parser, "fault_matrix_processes")
    options = parser.parse_args(argv)
    described = machine.describe()
    found = answers()
    right = sum(answer == "right" for answer in found.values())
    words = f"{right} of {len(found)} cells are right; x2 accumulates over two batches."
    text = "\n\n".join(["# One fault on one of two processes", machine.in_words(described), words, page(found)])
    values = {"machine": described, "cells": {str(cell): answer for cell, answer in found.items()}}
    machine.save(options.name, values, text, record=options.record)
    print(text)


if __name__ == "__main__":
    main()
