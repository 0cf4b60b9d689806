"""The site is built as `make docs` builds it: strictly, and every public name has its place."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_gradguard

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").rglob("*.html"))
    found = set(re.findall(r'id="lightning_gradguard\.[\w.]*?(\w+)"', pages))
    assert set(lightning_gradguard.__all__) - {"__version__"} <= found


def test_links_lead_to_files_of_the_site(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'<(?:a|img)[^>]+(?:href|src)="(?![a-z]+:|#)([^"#?]+)[^"]*"', text):
            path = site / target.lstrip("/") if target.startswith("/") else page.parent / target
            if page.name != "404.html":
                assert path.exists(), f"{page.relative_to(site)}: {target}"


def test_the_search_knows_pages_and_docstrings(site):
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    places = {entry["location"] for entry in entries}
    assert "sick/" in places
    assert any("ZClip" in place for place in places)
    assert any(place.startswith("gallery/") for place in places)


def test_no_markup_of_docstrings_is_left_over(site):
    for page in (site / "reference").rglob("*.html"):
        assert not re.search(r":(func|class|data|meth|mod|attr):", page.read_text(encoding="utf-8")), page
