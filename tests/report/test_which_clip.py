"""Which clip each run asks for, in ``report``: the table of ``whatif`` in every format."""

from __future__ import annotations

import json
import re

import pytest

from lightning_gradguard import whatif
from lightning_gradguard.report.command import main
from lightning_gradguard.report.runs import read_runs
from lightning_gradguard.report.which_clip import which_clips
from lightning_gradguard.sinks import JsonlSink

NORMS = (1.0, 1.1, 0.9, 1.0, 1.2, 40.0, 1.0, 0.8) * 5


@pytest.fixture
def logdir(tmp_path, make_record):
    folder = tmp_path / "logs"
    JsonlSink(folder / "a<b" / "gradguard.jsonl").write(make_record(39, num_steps=40, total_norms=NORMS))
    JsonlSink(folder / "old" / "gradguard.jsonl").write(make_record(39))
    return folder


def printed(logdir, capsys, *options):
    assert main([str(logdir), *options]) == 0
    return capsys.readouterr().out


def test_the_terminal_has_the_table_of_whatif_but_for_what_explains_its_columns(logdir, tmp_path, capsys):
    out = printed(logdir, capsys, "--out", str(tmp_path / "r.html"))
    (run,) = [run for run in read_runs(logdir)[0] if run.name == "a<b"]
    table = whatif(run.records, name="a<b")
    assert table.text(short=True) in out
    assert "Shares are of the steps" in str(table) and "Shares are of the steps" not in out
    assert "0.1% of the steps: " in out and "\nRecommended: " in out
    assert "\nold: " not in out, "a run whose steps are not known is asked nothing"


def test_a_pull_request_has_the_table_folded_away_below_the_recommendation(logdir, capsys):
    out = printed(logdir, capsys, "--format", "md")
    assert "<details><summary>Which clip for <code>a&lt;b</code>? ZClip(" in out and "\n| policy | clipped |" in out
    assert out.count("<details>") == out.count("</details>")


def test_json_holds_all_of_it(logdir, capsys):
    (run,) = json.loads(printed(logdir, capsys, "--format", "json"), parse_constant=pytest.fail)["whatif"]
    (optimizer,) = run["optimizers"]
    assert run["run"] == "a<b"
    assert {"recommended", "thresholds", "above_one", "rise", "policies", "was_clipped"} <= set(optimizer)
    assert len(optimizer["policies"]) >= 4


def test_the_page_has_it_and_a_name_stays_text(logdir, tmp_path, capsys):
    printed(logdir, capsys, "--out", str(tmp_path / "r.html"))
    section = re.search(r'<section id="clips">.*?</section>', (tmp_path / "r.html").read_text())[0]
    assert "<details><summary><b>a&lt;b</b>: ZClip(" in section and "<th>hardest clips at steps</th>" in section


def test_beyond_the_steps_that_a_report_has_time_for_only_the_recommendation_stands(logdir):
    (clip,) = which_clips(read_runs(logdir)[0], most_steps=39)
    assert clip.table is None
    told = [clip.text(), clip.markdown(), clip.html(), clip.as_json()["not_tried"]]
    assert all("No policy was tried on its 40 steps" in text for text in told)
    (tried,) = which_clips(read_runs(logdir)[0])
    assert tried.advice == clip.advice == {0: tried.table.optimizers[0].advice}
    assert clip.as_json()["optimizers"][0]["recommended"]["kind"] == "spikes"


def test_of_two_optimizers_each_is_asked(tmp_path, make_record):
    sink = JsonlSink(tmp_path / "gan.jsonl")
    for index in (0, 1):
        sink.write(make_record(39, optimizer=index, num_optimizers=2, num_steps=40, total_norms=NORMS))
    (clip,) = which_clips(read_runs(tmp_path)[0])
    assert "Which clip for <code>gan, optimizer 1</code>? " in clip.markdown()
    (long,) = which_clips(read_runs(tmp_path)[0], most_steps=0)
    assert long.steps == 80 and long.text().count("gan, optimizer ") == 2
