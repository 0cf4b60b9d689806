"""The Python blocks of docs/survive.md run as they stand, and its numbers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_gradguard import NonFiniteGuard, SpikeRule
from tests.forked import run_code

TEXT = (Path(__file__).parents[2] / "docs" / "survive.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(1, len(BLOCKS) + 1)])
def test_a_block_runs_in_a_fresh_interpreter(block, tmp_path):
    result = run_code(block, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_defaults_in_the_text_are_those_of_the_code():
    options = NonFiniteGuard().options
    for words, value in (
        ("`rollback_after` bad steps in a row ({})", options.rollback_after),
        ("`snapshot_every_n_steps` good steps\n({})", options.snapshot_every_n_steps),
        ("`max_incidents` ({})", options.max_incidents),
        ("`loss_scale_floor` ({:g})", options.loss_scale_floor),
        ("`max_bytes` ({} GiB)", options.max_bytes // 2**30),
        ("median + max({:g} ·", SpikeRule().z),
        ("log {:g}) over", SpikeRule().min_ratio),
        ("the last {} good values", SpikeRule().window),
    ):
        assert words.format(value) in TEXT, words
    assert SpikeRule().accept_after == 10
    assert "holds for ten steps" in TEXT
    assert "patience=20" in TEXT
    assert options.patience == 20
