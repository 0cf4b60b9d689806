"""docs/support.md says what the tests say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.modes.capabilities import CAPABILITIES
from tests.modes.modes import MODES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("support_table", DOCS / "support_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_table_of_today(script: Any) -> None:
    page = (DOCS / "support.md").read_text(encoding="utf-8")
    assert script.support() in page, "run `python docs/support_table.py --out docs/support.md`"


def test_every_cell_has_a_test_or_says_that_it_has_none(script: Any) -> None:
    for mode in MODES:
        for capability in CAPABILITIES:
            assert (script.name_of_test(mode, capability) is None) == (
                script.cell(MODES[mode], capability) == "not run"
            )


def test_the_page_shows_what_was_recorded_of_published_models(script: Any) -> None:
    page = (DOCS / "support.md").read_text(encoding="utf-8")
    assert script.clients() in page, "run `python docs/support_table.py`, or put the table of `make clients` in"
