"""Writes support.md from the tests: runs every cell of the support matrix and puts down what came out.

python docs/support_table.py --out docs/support.md
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.clients.__main__ import page as page_of_clients  # noqa: E402
from tests.modes.capabilities import CAPABILITIES  # noqa: E402
from tests.modes.distributed_checks import COLLECTIVES, POLICIES  # noqa: E402
from tests.modes.modes import MODES, Mode  # noqa: E402


class Results:
    """A pytest plugin that keeps what each test came to, and the figures it wrote down."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.figures: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each phase of a test."""
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome
            self.figures[name] = dict(report.user_properties)


def cell(mode: Mode, capability: str) -> str:
    """What the table says of a mode and a capability, once its test has passed."""
    if capability in mode.refused:
        return "refused"
    if capability in mode.not_run:
        return "not run"
    return "yes"


def name_of_test(mode: str, capability: str) -> str | None:
    """The name of the test behind a cell; ``None`` where there is none."""
    row = MODES[mode]
    if capability in row.not_run:
        return None
    kind = "test_refused_at_fit_start" if capability in row.refused else "test_supported"
    return f"{kind}[{mode}-{capability.replace(' ', '-')}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def support() -> str:
    """The table of modes and capabilities."""
    rows = ([row.title, *(cell(row, capability) for capability in CAPABILITIES)] for row in MODES.values())
    return table(["mode", *CAPABILITIES], rows)


def deviations(results: Results) -> str:
    """How far norms and weights of each policy lie from those of one process with whole tensors."""
    modes = ["ddp", "fsdp1", "fsdp2", "tp"]
    found = {
        mode: results.figures[f"test_every_policy_gives_the_weights_of_one_process[{mode}]"]["deviations"]
        for mode in modes
    }
    seen = [f"{results.figures[f'test_supported[{mode}-see]']['deviation']:.1e}" for mode in modes]
    rows = [[policy, *(f"{found[mode][policy]:.1e}" for mode in modes)] for policy in POLICIES]
    return table(["", *(MODES[mode].title for mode in modes)], [["norms of every layer", *seen], *rows])


def collectives(results: Results) -> str:
    """All-reduces of one step."""
    name = "test_a_step_costs_one_all_reduce_and_one_more_where_elements_or_units_count"
    modes = ["fsdp1", "fsdp2", "tp"]
    found = {mode: results.figures[f"{name}[{mode}]"]["collectives"] for mode in modes}
    rows = [[policy, "0", *(str(found[mode][policy]) for mode in modes)] for policy in COLLECTIVES]
    return table(["", "DDP", *(MODES[mode].title for mode in modes)], rows)


def clients() -> str:
    """What `make clients` recorded of the models of published packages."""
    return page_of_clients(json.loads((ROOT / "benchmarks" / "results" / "clients.json").read_text(encoding="utf-8")))


def main() -> int:
    """Runs the tests and writes the page; the status is 1 if one of them fails, and then nothing is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/support.md"), help="the page (default: %(default)s)")
    page = parser.parse_args().out
    page.parent.mkdir(parents=True, exist_ok=True)
    results = Results()
    files = [str(ROOT / "tests" / "modes" / name) for name in ("test_support.py", "test_distributed.py")]
    pytest.main(["-q", "--rootdir", str(ROOT), *files], plugins=[results])
    wanted = [test for mode in MODES for capability in CAPABILITIES if (test := name_of_test(mode, capability))]
    failed = [name for name in (*wanted, *results.outcomes) if results.outcomes.get(name) != "passed"]
    if failed:
        print(f"not written, since these did not pass: {', '.join(failed)}", file=sys.stderr)
        return 1
    machine = f"{platform.system()}, Python {platform.python_version()}"
    page.write_text(
        f"""# Where it works

Written by `python docs/support_table.py --out docs/support.md` from {len(results.outcomes)} tests, one for each cell
and more, on {date.today()}: {machine}, torch {torch.__version__}, lightning {lightning.__version__}, CPU with gloo.

- **yes**: a real training in this mode is compared with a plain float32 loop in one process.
- **refused**: an error when fit starts, before a weight has moved, says why and what to do instead.
- **not run**: no test. DeepSpeed is not installed here: its refusals are tested by its strategy's own flags, and of its
  gradients only the engine's global norm is logged. CUDA, NCCL, XLA and TransformerEngine were not run either;
  `benchmarks/gpu_smoke.py` is for a machine that has a GPU.

{support()}

## The same numbers as on one process

Largest relative deviation of layer norms, and of weights after six clipped steps, from a run over whole tensors.

{deviations(results)}

## What a step costs in collectives

All-reduces of one watched step that is not logged. One vector carries the norms of all parameters; the second carries
their largest elements, or the norms of their units. A logged step has a few more. DDP's gradients are equal on every
process, so nothing needs to be exchanged; models with float buffers (batch normalization) exchange one number for them.

{collectives(results)}

## Models of published packages

{clients()}""",
        encoding="utf-8",
    )
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
