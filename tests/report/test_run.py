"""A run in Python: read, drawn, as a table, in a notebook."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from lightning_gradguard import Run, read_run
from lightning_gradguard.record import Finding
from lightning_gradguard.sinks import JsonlSink
from tests.tensorboard.synthetic import busy_run, gan_run, vanishing_run, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    sink = JsonlSink(folder / "vanishing" / "gradguard.jsonl")
    for record in vanishing_run():
        sink.write(record)
    write_run(folder / "busy", busy_run(num_records=60))
    write_run(folder / "gan", gan_run())
    return folder


def test_a_folder_with_records_is_read_from_them(folder):
    run = read_run(folder / "vanishing")
    assert run.records == list(vanishing_run())
    assert run.records == read_run(folder / "vanishing" / "gradguard.jsonl").records
    assert repr(run) == f"Run({len(run.records)} records, name='vanishing')"
    assert [finding.rule for finding in run.findings] == ["vanishing-over-depth"]


def test_event_files_give_what_they_hold(folder):
    records, made = read_run(folder / "busy").records, list(busy_run(num_records=60))
    assert [r.step for r in records] == [r.step for r in made]
    assert [r.num_clipped for r in records] == [r.num_clipped for r in made]
    assert records[0].layers == made[0].layers
    assert records[0].total_norm == pytest.approx(made[0].max_total_norm, rel=1e-6)
    assert records[0].weight_norms[:3] == pytest.approx(made[0].weight_norms[:3], rel=1e-5)
    assert {r.optimizer for r in read_run(folder / "gan").records} == {0, 1}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "does not exist"),
        ("", ValueError, "several runs"),
        ("empty", ValueError, "no grad"),
    ],
)
def test_what_is_not_one_run_is_refused(folder, name, error, message):
    (folder / "empty").mkdir(exist_ok=True)
    if name == "":
        JsonlSink(folder / "other" / "gradguard.jsonl").write(next(iter(vanishing_run())))
    with pytest.raises(error, match=message):
        read_run(folder / name)


@pytest.mark.parametrize("name", ["vanishing", "busy", "gan"])
def test_the_figure_has_the_flow_the_profile_and_the_total_norm(folder, name):
    run = read_run(folder / name)
    figure = run.plot(optimizer=max(record.optimizer for record in run.records))
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert "median norm" in labels and "step" in labels
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_records", [1, 2])
def test_a_run_of_one_record_is_drawn_too(make_record, num_records):
    assert Run([make_record(i) for i in range(num_records)]).plot()._repr_png_()


def test_a_run_without_layers_shows_its_total_norm(make_record):
    totals = {"layers": (), "layer_norms": (), "max_layer_norms": (), "weight_norms": None, "update_ratios": None}
    assert len(Run([make_record(i, **totals) for i in range(3)]).plot().axes) == 1


def test_a_bad_step_is_drawn_and_not_hidden(make_record):
    bad = make_record(3, total_norm=math.nan, cause="nan", verdict="skipped", nonfinite_layers=("a",))
    figure = Run([make_record(1), make_record(2), bad]).plot()
    assert any(line.get_label() == "nonfinite" for axes in figure.axes for line in axes.get_lines())


def test_an_optimizer_that_is_not_there_is_refused_with_those_that_are(make_record):
    with pytest.raises(ValueError, match=r"no records of optimizer 3; it has those of \[0\]"):
        Run([make_record()]).plot(optimizer=3)


def test_the_long_table_has_a_row_for_each_layer_and_record(make_record):
    frame = Run([make_record(step, layer_norms=(0.5, None, 0.1, 0.1, 0.1, 0.1)) for step in (1, 2)]).to_frame()
    assert list(frame.columns[:4]) == ["step", "optimizer", "layer", "depth"]
    assert len(frame) == 12
    assert frame.query("layer == 'a' and step == 2")["norm"].item() == 0.5
    assert frame.query("layer == 'b'")["norm"].isna().all()


def test_the_table_of_steps_has_a_row_for_each_record(make_record):
    found = Finding("a-rule", "info", "words", 2)
    frame = Run([make_record(1), make_record(2, findings=(found,))]).to_frame(by="step")
    assert frame["total_norm"].tolist() == [0.25, 0.25]
    assert frame["findings"].tolist() == ["", "a-rule"]


def test_another_kind_of_table_is_refused(make_record):
    with pytest.raises(ValueError, match="by must be 'layer' or 'step', got 'epoch'"):
        Run([make_record()]).to_frame(by="epoch")


def test_in_a_notebook_it_is_words_and_names_are_text(make_record):
    found = Finding("a-rule", "critical", "<b>words</b>", 2, remedies=("do this",))
    html = Run([make_record(findings=(found,))], name="<i>")._repr_html_()
    assert "<b>critical: a-rule</b>" in html and "<li>do this</li>" in html
    assert "&lt;b&gt;words" in html and "&lt;i&gt;" in html
    assert "no records yet" in Run([])._repr_html_()


def test_matplotlib_and_pandas_are_imported_only_where_they_are_used():
    program = (
        "import sys, lightning_gradguard as g; run = g.Run([]); repr(run); run._repr_html_();"
        "print({'matplotlib', 'pandas', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
