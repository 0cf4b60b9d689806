"""The report command: a page and a summary."""

import subprocess
import sys

import pytest
from rich.console import Console

from lightning_gradguard.report.command import main, print_runs
from lightning_gradguard.report.offline import read_pictures
from lightning_gradguard.report.summary import summarize
from lightning_gradguard.sinks import JsonlSink
from tests.tensorboard.synthetic import busy_run, gan_run, vanishing_run, write_run


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
        print_runs([summarize(picture) for picture in read_pictures(folder)[0]], console)
    return console.export_text()


def test_the_page_is_written_and_the_summary_says_where(folder, tmp_path, capsys):
    out = tmp_path / "artefacts" / "report.html"
    assert main([str(folder), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert "Wrote" in capsys.readouterr().out
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
