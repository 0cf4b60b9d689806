"""The page on clipping and the examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import lightning_gradguard.clip

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clipping.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
MODULES = [module.name for module in pkgutil.iter_modules(lightning_gradguard.clip.__path__)]


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n", 1)[0] for block in BLOCKS])
def test_a_block_of_the_page_runs(block: str) -> None:
    exec(compile(block, "docs/clipping.md", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name: str) -> None:
    module = importlib.import_module(f"lightning_gradguard.clip.{name}")
    assert doctest.testmod(module).failed == 0


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert target.startswith("http") or (ROOT / "docs" / target).resolve().exists(), target
