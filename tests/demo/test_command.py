"""The demo, as somebody runs it who has installed the wheel and nothing else of ours."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.forked import run_code

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel unpacks to."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def gradguard(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = f"""
import sys
sys.path.insert(0, {str(installed)!r})
import lightning_gradguard
assert lightning_gradguard.__file__.startswith({str(installed)!r})
from lightning_gradguard.__main__ import run
run()
"""
    return run_code(command, *arguments, cwd=cwd)


def test_it_trains_says_what_is_wrong_and_shows_the_cure(installed: Path, tmp_path: Path) -> None:
    result = gradguard(installed, tmp_path, "demo", "--steps", "60")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "critical vanishing-over-depth" in said
    assert said.count("GradGuard: done after 60 steps") == 4
    losses = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines() if line.strip()}
    assert losses["bad-batches"] == "nan"
    assert float(losses["bad-batches-guarded"]) < 0.69
    assert float(losses["deep-cured"]) < float(losses["deep"])
    assert gradguard(installed, tmp_path, "report", "gradguard-demo", "--fail-on", "critical").returncode == 1
    assert (tmp_path / "report.html").is_file()


def test_the_wheel_has_the_console_command_and_the_tab(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "[console_scripts]\ngradguard = lightning_gradguard.__main__:run" in entry_points.read_text()
    assert (installed / "lightning_gradguard" / "tensorboard" / "static" / "index.js").is_file()


def test_a_bad_number_of_steps_is_refused(installed: Path, tmp_path: Path) -> None:
    result = gradguard(installed, tmp_path, "demo", "--steps", "0")
    assert result.returncode == 2 and "--steps must be at least 1, got 0" in result.stderr
