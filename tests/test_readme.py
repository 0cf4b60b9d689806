"""Every Python block of the README runs as it stands."""

import re
from pathlib import Path

import pytest

from tests.forked import run_code

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(1, len(BLOCKS) + 1)])
def test_a_block_runs_in_a_fresh_interpreter(block, tmp_path):
    result = run_code(block, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 3


def test_its_links_lead_somewhere():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert target.startswith("http") or (root / target).exists(), target
