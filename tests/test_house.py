"""The house as a whole: what a newcomer sees of it, and how far a step goes through it."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_gradguard
from benchmarks.traced import STEPS, trace
from lightning_gradguard import AGC, ZClip

PACKAGE = Path(lightning_gradguard.__file__).parent


def functions() -> Iterator[tuple[int, str]]:
    """Length in lines of every function of the package without its docstring, with its place."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                first = node.body[0]
                docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                words = first.end_lineno - first.lineno + 1 if docstring and first.end_lineno else 0
                yield node.end_lineno - node.lineno + 1 - words, f"{path.relative_to(PACKAGE)}: {node.name}"


def test_the_root_of_the_package_has_few_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_no_function_is_longer_than_a_screen():
    longest = sorted(functions(), reverse=True)
    assert longest[0][0] <= 60, longest[0]
    assert longest[3][0] <= 40, longest[:4]


def test_a_room_says_what_it_is_for():
    for room in (path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        assert importlib.import_module(f"lightning_gradguard.{room.name}").__doc__, room.name


@pytest.mark.parametrize(("policy", "files", "changes"), [(ZClip(), 12, 22), (AGC(), 16, 37)], ids=["ZClip", "AGC"])
def test_a_quiet_step_stays_in_few_files(policy, files, changes):
    found = trace(policy, STEPS["quiet"])
    assert len(found.files) <= files, found.files
    assert found.changes <= changes, found.calls
