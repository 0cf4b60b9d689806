"""Each script of the quickstart is short, needs nothing beside it, and runs from any folder as its head says."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.forked import run_script

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
SCRIPTS = ["cli.py", "fabric_loop.py", "plain_loop.py", "trainer.py", "two_optimizers.py"]
MAX_LINES = 90
OPTIONS = {
    "cli.py": ["fit", "--config", str(QUICKSTART / "cli_config.yaml"), "--trainer.limit_train_batches=3"],
    "trainer.py": ["--max_epochs", "1", "--accelerator", "cpu"],
    "two_optimizers.py": ["--max_epochs", "1", "--accelerator", "cpu"],
}


def test_there_are_five_scripts() -> None:
    assert sorted(path.name for path in QUICKSTART.glob("*.py")) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_enough_to_be_read_whole(script: str) -> None:
    assert len((QUICKSTART / script).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_copied_alone(script: str) -> None:
    tree = ast.parse((QUICKSTART / script).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    installed = {"lightning", "lightning_gradguard", "torch"}
    assert {str(name).partition(".")[0] for name in imported} <= installed | sys.stdlib_module_names


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_its_weights_stay_finite(script: str, tmp_path: Path) -> None:
    done = run_script(QUICKSTART / script, *OPTIONS.get(script, []), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if script != "cli.py":  # which has no code to print with
        assert "weights are finite: True" in done.stdout
    if script == "two_optimizers.py":
        assert "one record for both optimizers: 3 layers" in done.stdout
        assert "steps dropped: 1;" in done.stdout
