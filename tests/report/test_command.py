"""The report command: a page and a summary."""

import json
import math
import subprocess
import sys

import pytest
from rich.console import Console

from lightning_gradguard.record import Finding
from lightning_gradguard.report.command import main, print_runs, read_report
from lightning_gradguard.report.run import Run
from lightning_gradguard.sinks import JsonlSink
from tests.tensorboard.synthetic import busy_run, gan_run, vanishing_run, with_every_norm, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_run(folder / "busy", busy_run())
    write_run(folder / "gan", gan_run())
    sink = JsonlSink(folder / "vanishing.jsonl")
    for record in vanishing_run():
        sink.write(record)
    return folder


def summary(folder):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        print_runs(read_report(folder).summaries, console)
    return console.export_text()


def test_the_page_is_written_and_the_summary_says_where(folder, tmp_path, capsys):
    out = tmp_path / "artefacts" / "report.html"
    assert main([str(folder), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert "Wrote" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["report.html"], "nothing unfinished is left"


def test_the_summary_has_a_line_for_each_run(folder):
    lines = {line.split()[0]: line.split() for line in summary(folder).splitlines() if line.strip()}
    assert lines["busy"][1] == "3,000"
    assert "1 5 - 1 step not finite" in " ".join(lines["busy"]), "one bad step, five spikes, no finding"
    assert "critical: vanishing-over-depth" in " ".join(summary(folder).split())
    assert "gan opt1" in summary(folder)


def test_findings_come_with_depth_profile_and_remedies_in_order(folder):
    text = summary(folder)
    assert "layer, input first" in text
    bars = {line.split()[0]: line.count("█") for line in text.splitlines() if line.strip().startswith("blocks.")}
    assert bars["blocks.0"] == 0
    assert bars["blocks.15"] == 24
    assert list(bars.values()) == sorted(bars.values())
    first, second = text.index("1. initialize for the activation"), text.index("2. add normalization")
    assert text.index("critical vanishing-over-depth") < first < second


@pytest.mark.parametrize("content", [None, "", "not a record\n"], ids=["missing", "empty", "broken"])
def test_bad_input_is_one_clear_line_and_exit_status_two(tmp_path, capsys, content):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "--out", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("report: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_clear_line(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(folder), "--out", str(tmp_path / "file" / "report.html")]) == 2
    assert "report: " in capsys.readouterr().err


def test_the_command_runs_without_importing_torch_or_lightning(folder, tmp_path):
    program = (
        "import sys; from lightning_gradguard.__main__ import main;"
        f"status = main(['report', {str(folder)!r}, '--out', {str(tmp_path / 'r.html')!r}]);"
        "print(status, sorted({'torch', 'lightning'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


def options_for(tmp_path, *more):
    return ["--out", str(tmp_path / "report.html"), *more]


@pytest.mark.parametrize(
    ("run", "severity", "status"),
    [
        ("sick.jsonl", "critical", 1),
        ("sick.jsonl", "warning", 1),
        ("healthy.jsonl", "warning", 0),
        ("noted.jsonl", "warning", 0),
        ("warned.jsonl", "warning", 1),
        ("warned.jsonl", "critical", 0),
        (".", "critical", 1),
    ],
)
def test_a_job_fails_on_findings_as_grave_as_it_says(tmp_path, make_record, run, severity, status):
    for name, grade in (("sick", "critical"), ("warned", "warning"), ("noted", "info"), ("healthy", None)):
        findings = () if grade is None else (Finding("a-rule", grade, "words", 1),)
        JsonlSink(tmp_path / f"{name}.jsonl").write(make_record(1, findings=findings))
    assert main([str(tmp_path / run), *options_for(tmp_path)]) == 0
    assert main([str(tmp_path / run), *options_for(tmp_path, "--fail-on", severity)]) == status


def test_markdown_fits_a_pull_request(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("## Gradients of logs")
    assert "4 runs: 1 with a critical finding." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| vanishing |")]
    head = next(line for line in text.splitlines() if line.startswith("| run |"))
    assert row.count("|") == head.count("|")
    assert "| critical: vanishing-over-depth |" in row
    assert "<details><summary><code>vanishing</code>: 1 finding</summary>" in text
    assert list(tmp_path.iterdir()) == [], "no page unless --out asks for one"


def test_a_name_cannot_break_the_table(tmp_path, capsys, make_record):
    JsonlSink(tmp_path / "a|b<i>.jsonl").write(make_record(1))
    assert main([str(tmp_path), "--format", "md"]) == 0
    assert "| a\\|b&lt;i&gt; |" in capsys.readouterr().out


def test_json_is_strict_and_holds_everything(capsys, make_record, tmp_path):
    JsonlSink(tmp_path / "nan.jsonl").write(make_record(1, loss=math.nan, findings=(Finding("r", "info", "w", 1),)))
    assert main([str(tmp_path), "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    (run,) = content["runs"]
    assert (run["run"], run["steps"], run["loss"], run["verdict"]) == ("nan", 1, "nan", "info: r")
    assert run["findings"][0]["rule"] == "r"
    assert content["unreadable"] == []


@pytest.mark.parametrize("form", ["text", "md", "json"])
def test_one_run_that_cannot_be_read_is_named_and_does_not_hide_the_others(tmp_path, capsys, make_record, form):
    JsonlSink(tmp_path / "good.jsonl").write(make_record(1))
    (tmp_path / "broken.jsonl").write_text("no record\n")
    assert main([str(tmp_path), *options_for(tmp_path, "--format", form)]) == 2
    printed = capsys.readouterr()
    assert "report: broken cannot be read: " in printed.err and "line 1" in printed.err
    assert "good" in printed.out
    if form != "text":
        assert "broken" in printed.out


def test_a_run_that_was_only_clipped_is_reported_too(tmp_path, capsys, make_record):
    totals = {"layers": (), "layer_norms": (), "max_layer_norms": (), "depth": (), "weight_norms": None}
    JsonlSink(tmp_path / "totals.jsonl").write(make_record(1, coefficient=0.5, num_clipped=1, **totals))
    assert main([str(tmp_path), *options_for(tmp_path)]) == 0
    assert "totals" in capsys.readouterr().out


def test_the_curve_of_every_step_is_drawn(tmp_path):
    run = Run(list(with_every_norm(vanishing_run())), "first")
    labels = [line.get_label() for axes in run.plot().axes for line in axes.get_lines()]
    assert "every step" in labels
