"""``gradguard whatif``: tables for every run, and one line and status 2 for what cannot be told."""

from __future__ import annotations

import json

import pytest

from lightning_gradguard.report.runs import read_runs
from lightning_gradguard.report.whatif_command import main
from lightning_gradguard.sinks import JsonlSink
from tests.tensorboard.synthetic import steady_run, write_run

NORMS = (1.0, 1.1, 0.9, 1.0, 1.2, 40.0, 1.0, 0.8) * 5


@pytest.fixture
def logdir(tmp_path, make_record):
    for name in ("first", "second"):
        JsonlSink(tmp_path / name / "gradguard.jsonl").write(make_record(39, num_steps=40, total_norms=NORMS))
    return tmp_path


def test_each_run_has_a_table_with_the_policy_asked_for(logdir, capsys):
    assert main([str(logdir), "--clip", "NormClip(5.0)"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split(":")[0] for line in out.splitlines() if ": 40 steps" in line] == ["first", "second"]
    assert out.count("NormClip(max_norm=5.0)") == 2 and out.count("Recommended: ") == 2


def test_json_is_strict_and_markdown_a_table(logdir, capsys):
    assert main([str(logdir), "--format", "json"]) == 0
    runs = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["runs"]
    assert [run["run"] for run in runs] == ["first", "second"]
    assert runs[0]["optimizers"][0]["policies"][0]["policy"] == "NormClip(max_norm=1.0)"
    assert main([str(logdir), "--format", "md"]) == 0
    assert "| policy | clipped |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ("AGC()", "AGC() needs the norms of units and of their weights"),
        ("ValueClip(1.0)", "needs the largest elements of the gradients"),
        ("__import__('os').system('true')", "is no policy"),
    ],
)
def test_a_policy_that_cannot_be_tried_is_one_line_and_status_two(logdir, capsys, clip, words):
    assert main([str(logdir), "--clip", clip]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("whatif: ") and words in err and err.count("\n") == 1


def test_a_run_without_norms_is_named_and_the_others_are_told(logdir, capsys, make_record):
    JsonlSink(logdir / "old" / "gradguard.jsonl").write(make_record(1))
    assert main([str(logdir)]) == 2
    out, err = capsys.readouterr()
    assert out.count("Recommended: ") == 2
    assert err == "whatif: old has no total norms of its steps: its records are of an older version, or of no step\n"


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_without_runs_is_one_line_and_status_two(tmp_path, capsys, name):
    assert main([str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_event_files_are_read_where_there_are_no_records(tmp_path):
    records = list(steady_run())[:3]
    write_run(tmp_path / "board", iter(records))
    (run,), unreadable = read_runs(tmp_path)
    assert (run.name, len(run.records), unreadable) == ("board", 3, [])
