"""A file of records that a killed run leaves can be gone on with."""

from __future__ import annotations

import pytest

from lightning_gradguard.sinks import JsonlSink, read_jsonl
from tests.tensorboard.synthetic import steady_run

RECORDS = list(steady_run())[:3]


def steps(path):
    return [record.step for record in read_jsonl(path)]


@pytest.mark.parametrize("cut", [1, 2, 40, 500, -2, 0], ids=lambda cut: f"cut-{cut}")
def test_a_last_line_that_a_kill_cut_off_does_not_take_the_next_record_with_it(tmp_path, cut):
    """A negative cut is counted from the line's end; -1 would be the line without its end, which is a whole record."""
    path = tmp_path / "run.jsonl"
    sink = JsonlSink(path)
    sink.write(RECORDS[0])
    with path.open("a") as file:
        file.write(RECORDS[1].to_json()[:cut] if cut else "")
    JsonlSink(path).write(RECORDS[2])
    assert steps(path) == [RECORDS[0].step, RECORDS[2].step]


def test_a_whole_record_that_only_lacks_the_end_of_its_line_is_kept(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(RECORDS[0].to_json())
    JsonlSink(path).write(RECORDS[1])
    assert steps(path) == [RECORDS[0].step, RECORDS[1].step]


def test_what_is_not_ours_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a note\nwithout an end")
    JsonlSink(path).write(RECORDS[0])
    assert path.read_text().splitlines()[:2] == ["a note", "without an end"]


def test_a_letter_of_several_bytes_that_was_cut_in_two_does_no_harm(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes('{"step": 1, "layers": ["schön'.encode()[:-2])
    JsonlSink(path).write(RECORDS[0])
    assert steps(path) == [RECORDS[0].step]
