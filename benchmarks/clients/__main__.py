"""Trains models of published packages plain, watched and with everything on, and writes down what came of it.

    make clients                                    in an environment of its own, .venv-clients
    python -m benchmarks.clients [NAME ...]         in this environment; the names are those of models.py

A process for each model, one thread. With ``--record`` the table goes to ``results/clients.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COLUMNS = ("plain", "watched", "norms", "findings", "records", "pickle", "everything on", "NaN batch", "replay")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 1 if a watched model ended or differed."""
    from benchmarks import machine
    from benchmarks.clients.models import MODELS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--one", action="store_true", help="in this process; prints the row as JSON")
    machine.add_record_option(parser, "clients")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(MODELS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if options.one:
        print(json.dumps(one(options.names[0])))
        return 0
    machine_before = machine.describe() | {"command": "make clients"}
    rows = {}
    for name in options.names or MODELS:
        rows[name] = in_a_process(name)
        print(name, json.dumps(rows[name], indent=1), flush=True)
    results = {"machine": machine_before, "rows": rows}
    machine.save(options.name, results, f"# Models of published packages\n\n{page(results)}", record=options.record)
    return int(any(row.get("watched") != "same bits" for row in rows.values()))


def one(name: str) -> dict[str, str]:
    """The row of one model, or why there is none: a package that is not installed, say."""
    from benchmarks.clients.checks import check, failed
    from benchmarks.clients.models import MODELS

    package, title, train = MODELS[name]
    try:
        found = version(package)
    except PackageNotFoundError:
        return {"package": package, "model": title, "plain": "not installed"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            row = check(train, Path(folder))
        except Exception as error:
            row = {"plain": f"the check itself failed: {failed(error)}"}
    return {"package": f"{package} {found}", "model": title, **row}


def in_a_process(name: str) -> dict[str, str]:
    """The same in a process and a folder of its own, since packages write where they are run."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.clients", "--one", name],
            cwd=folder,
            env={**environment(), "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        return {"package": name, "model": "", "plain": f"ended with status {run.returncode}: {run.stderr[-200:]!r}"}
    row: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return row


def environment() -> dict[str, str]:
    """This process's own, with one thread, and without the variable that adds a callback to every Trainer."""
    import os

    kept = {key: value for key, value in os.environ.items() if key != "LIGHTNING_GRADGUARD"}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def page(results: Mapping[str, Any]) -> str:
    """The table in Markdown, with what its columns mean."""
    from benchmarks import machine

    cells = [[row["package"], row["model"], *(row.get(c, "") for c in COLUMNS)] for row in results["rows"].values()]
    head = ["package", "model", *COLUMNS]
    table = [head, ["---"] * len(head), *cells]
    lines = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return f"""{machine.in_words(results["machine"])}

Each model is trained by its package's own call, on small synthetic data, from one seed.

- **watched**: weights, buffers and torch's generator compared with the plain run, under default rules and probes.
- **norms**: largest relative deviation of the total norm from `torch.nn.utils.get_total_norm`, over all steps.
- **findings**: what the diagnosis said of this healthy run; anything here is a false alarm, or true and worth reading.
- **records**: whether the callback that was passed has them; some packages copy their callbacks.
- **pickle**: of the callback after the run.
- **everything on**: `GradGuard(clip=ZClip(), incident_dir=...)`; GluonTS is told `gradient_clip_val=None`: it has 10.
- **NaN batch**: one row of every floating-point tensor of one batch is NaN, under `GradGuard(incident_dir=...)`.
- **replay**: of its bundle, by the module it happened to.

{lines}
"""


if __name__ == "__main__":
    raise SystemExit(main())
