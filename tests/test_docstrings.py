"""Every example in a docstring of the package runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import lightning_gradguard

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lightning_gradguard.__path__, "lightning_gradguard.")
    if not module.name.endswith("__main__")
]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of torch and tensorboard, when they import parts of themselves
@pytest.mark.parametrize("name", MODULES)
def test_its_examples_hold(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what an example writes is not left in the repository
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_an_example_that_no_longer_holds_is_found() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda _: None).failed == 1
