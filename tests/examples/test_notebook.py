"""The notebook runs from top to bottom, and shows words, a figure and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown: list[dict[str, Any]] = [
        output["data"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output
    ]
    assert sum("image/png" in data for data in shown) == 1, "the figure, once"
    words = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("critical: vanishing-over-depth" in text for text in words) == 2, "from the callback, and from the disk"
    assert any("net.0" in data.get("text/plain", "") for data in shown)
