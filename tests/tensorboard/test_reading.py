"""A loader that is not done is told from one that is."""

import re

import pytest

from tests.tensorboard.reading import read_ends, slow_provider, wait_until_read, written_ends
from tests.tensorboard.synthetic import steady_run, write_run


def test_a_run_that_is_not_read_to_its_end_is_waited_for_and_named(tmp_path):
    for name in ("early", "late"):
        write_run(tmp_path / name, steady_run(num_records=3, depth=2))
    whole = read_ends(slow_provider(tmp_path))
    assert whole == written_ends(tmp_path)
    answers = iter([{}, {"early": whole["early"]}, {**whole, "late": whole["late"] - 1e-6}, whole])
    wait_until_read(tmp_path, lambda: next(answers))
    assert list(answers) == []
    expected = f"within 0 s: {{'late': 'read to None of {whole['late']}'}}; read: ['early']"
    with pytest.raises(TimeoutError, match=re.escape(expected)):
        wait_until_read(tmp_path, lambda: {"early": whole["early"]}, timeout=0.0)
