"""The page that leads from a symptom to a remedy knows every rule, and what it says can be typed."""

import re
from pathlib import Path

from lightning_gradguard.diagnose import default_rules
from tests.forked import run_code

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "sick.md").read_text(encoding="utf-8")


def test_every_rule_has_a_place_on_the_page():
    linked = set(re.findall(r"diagnosis\.md#([\w-]+)", TEXT))
    assert {rule.id for rule in default_rules()} == linked


def test_its_python_block_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    result = run_code(block, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
