"""The page about TensorBoard says what is so."""

import re
from pathlib import Path

import pytest

from lightning_gradguard.tensorboard.assets import STATIC
from lightning_gradguard.tensorboard.scalars import scalar_values
from tests.forked import run_code
from tests.tensorboard.synthetic import busy_run

PAGE = Path(__file__).parents[2] / "docs" / "tensorboard.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, flags=re.S), ids=["panels", "hparams"])
def test_a_block_runs_in_a_fresh_interpreter(block, tmp_path):
    result = run_code(block, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_its_pictures_and_links_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target


def test_every_tag_that_is_written_is_on_the_page():
    for tag in scalar_values(next(busy_run())):
        group, _, name = tag.partition("/")
        assert f"`{group}/" in TEXT
        assert group == "grad_norm" or f"/{name}`" in TEXT, tag


def test_every_key_that_the_tab_knows_is_on_the_page():
    keys = re.findall(r'\["([^"]+)", "', (STATIC / "keyboard.js").read_text().partition("];")[0])
    single = {key for group in keys for key in re.split(r"[ ,]+", group) if len(key) == 1}
    assert len(single) > 10
    assert not {key for key in single if f"`{key}`" not in TEXT}
