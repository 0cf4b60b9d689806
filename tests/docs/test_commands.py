"""Every command of the docs can be tried: nothing that is recorded is overwritten unless that is asked for."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import machine

ROOT = Path(__file__).parents[2]
RECORDED = [ROOT / folder for folder in ("benchmarks/results", "docs", "examples")]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("benchmarks", "docs", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)


def states():
    files = [path for folder in RECORDED for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Runs the test in a folder of its own; afterwards what is recorded is as it was."""
    before = states()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), str(ROOT / "examples"), *sys.path])
    yield
    assert states() == before


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_tells_and_does_nothing(script, recorded, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        if script.name == "__main__.py":  # of a folder that is run with -m
            name = ".".join(script.parent.parts)
            monkeypatch.delitem(sys.modules, f"{name}.__main__", raising=False)  # another test may have imported it
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code in (0, None)
    assert len(capsys.readouterr().out) > 100
    assert list(tmp_path.iterdir()) == []


def test_a_trial_goes_elsewhere_and_a_recording_says_so(recorded, monkeypatch, tmp_path):
    machine.save("overhead", {}, "tried", record=False)
    assert (tmp_path / machine.TRIED / "overhead.md").read_text() == "tried\n"
    assert machine.figure_path("growth.png", record=False) == machine.TRIED / "growth.png"
    assert machine.figure_path("growth.png", record=True) == ROOT / "docs" / "growth.png"
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    machine.save("overhead", {}, "recorded", record=True)
    assert (tmp_path / "results" / "overhead.md").read_text() == "recorded\n"


def test_no_script_writes_to_where_things_are_recorded_by_default():
    for script in SCRIPTS:
        text = (ROOT / script).read_text(encoding="utf-8")
        defaults = re.findall(r"--(record|out|name|figure|path)\"[^\n]*default=[^,)]*(?:results|docs|__file__)", text)
        assert not defaults, f"{script}: --{defaults[0]}"


def test_commands_of_the_docs_name_scripts_that_exist():
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "examples" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for script in set(re.findall(r"python ((?:examples|docs|benchmarks)/\S+\.py)", text)):
        assert (ROOT / script).exists(), script
    for module in set(re.findall(r"python -m (benchmarks\.\w+)", text)):
        assert importlib.util.find_spec(module), module
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, flags=re.M)) <= {(t, "") for t in targets} | {
        ("", t) for t in targets
    }
