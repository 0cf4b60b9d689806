"""Zero code: Lightning's entry points, off unless the environment says otherwise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning

from lightning_gradguard import GradGuard, ZClip
from lightning_gradguard.callbacks import from_environment as factory
from lightning_gradguard.environment import VARIABLE, callbacks_from_environment
from tests.forked import run_code
from tests.modes.modes import OtherProblem, quiet_trainer
from tests.modes.training import Problem, batches

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("lightning_gradguard.environment._told", set())
    return lambda value: monkeypatch.setenv(VARIABLE, value)


def from_the_entry_point(trainer: Any) -> Any:
    """The callback that nobody listed; it is there because the package is installed."""
    (callback,) = [c for c in trainer.callbacks if isinstance(c, factory.GradGuardFromEnvironment)]
    return callback


@pytest.mark.parametrize("value", [None, "", "0", "off"])
def test_without_the_variable_nothing_is_added(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert callbacks_from_environment() == []


def test_asking_costs_no_import_unless_it_is_set() -> None:
    program = (
        "import sys; from lightning_gradguard.environment import callbacks_from_environment as ask; "
        "assert ask() == [] and not {'torch', 'lightning'} & set(sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=ROOT)


def test_both_packages_are_offered_the_factory() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    target = f'gradguard = "{callbacks_from_environment.__module__}:{callbacks_from_environment.__name__}"'
    for package in ("lightning.pytorch", "pytorch_lightning"):
        assert f'[project.entry-points."{package}.callbacks_factory"]\n{target}\n' in declared


@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_when_it_is_set_a_trainer_that_lists_nothing_is_watched(package: Any, environment: Any, tmp_path: Any) -> None:
    environment("1")
    module = Problem() if package is pl else OtherProblem()
    trainer = quiet_trainer(str(tmp_path), [], trainer_class=package.Trainer)
    trainer.fit(module, batches())
    assert len(from_the_entry_point(trainer).records) == 6


def test_it_says_so_once(environment: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_told", False)
    environment("1")
    with caplog.at_level("INFO"):
        callbacks_from_environment()
        callbacks_from_environment()
    assert [VARIABLE in record.getMessage() for record in caplog.records] == [True]


def test_it_steps_aside_where_the_user_lists_callbacks_of_ours(environment: Any, tmp_path: Any) -> None:
    environment("1")
    own = GradGuard()
    trainer = quiet_trainer(str(tmp_path), [own])
    trainer.fit(Problem(), batches())
    assert len(own.records) == 6 and from_the_entry_point(trainer).records == []


OPTIONS = {"clip": {"class_path": "ZClip", "init_args": {"z": 3.0}}, "on_nonfinite": "raise", "log_every_n_steps": 5}


@pytest.mark.parametrize("kind", ["inline", "json", "yaml"])
def test_options_come_as_json_or_from_a_file(kind: str, environment: Any, tmp_path: Path) -> None:
    text = json.dumps(OPTIONS)
    if kind != "inline":
        path = tmp_path / f"options.{kind}"
        path.write_text(
            text if kind == "json" else "clip:\n  class_path: lightning_gradguard.ZClip\n  init_args: {z: 3.0}\n"
        )
        text = str(path)
    environment(text)
    trainer = quiet_trainer(str(tmp_path), [])
    trainer.fit(Problem(), batches())
    callback = from_the_entry_point(trainer)
    clip = callback._session.plan.clip
    assert isinstance(clip, ZClip) and clip.z == 3.0
    assert [record.step for record in callback.records] == ([0, 1, 2, 3, 4, 5] if kind == "yaml" else [0, 1, 2, 4, 5])


WRONG = {
    "no/such/file.yaml": "readable file",
    "{broken": "nor JSON",
    "[1, 2]": "readable file",
    '{"clip": {"class_path": "os.system", "init_args": {"command": "true"}}}': "no public class",
    '{"clip": "ZClip"}': "must be a ClipPolicy",
    '{"on_nonfinite": "ignore"}': "ignore",
    '{"no_such_argument": 1}': "no_such_argument",
}


@pytest.mark.parametrize("value", WRONG)
def test_what_it_does_not_understand_it_says_once_and_the_program_trains_on(
    value: str, environment: Any, tmp_path: Path
) -> None:
    environment(value)
    with pytest.warns(UserWarning) as told:
        trainer = quiet_trainer(str(tmp_path), [])
        trainer.fit(Problem(), batches())
        quiet_trainer(str(tmp_path), [])
    ours = [str(warning.message) for warning in told if VARIABLE in str(warning.message)]
    assert len(ours) == 1 and re.search(WRONG[value], ours[0])
    assert trainer.global_step == 6


PROGRAM = """
import sys
{before}
import lightning.pytorch as pl
from lightning.pytorch.demos.boring_classes import BoringModel
pl.Trainer(max_steps=1, limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
           enable_model_summary=False, accelerator="cpu").fit(BoringModel())
print("trained")
"""


@pytest.mark.parametrize(
    "before",
    [
        "sys.modules['lightning_gradguard.callbacks.gradguard'] = None",
        "sys.modules['tensorboard'] = None",
        "import warnings; sys.modules['lightning_gradguard.callbacks'] = None; warnings.simplefilter('error')",
    ],
    ids=["a part of ours is broken", "a dependency is missing", "and warnings are errors"],
)
def test_a_broken_installation_does_not_end_a_program(before: str) -> None:
    program = PROGRAM.format(before=before)
    if "simplefilter" in before:  # Lightning's own warnings are none of our business
        program = program.replace("warnings.simplefilter('error')", "warnings.filterwarnings('error', message='LIGHT')")
    run = run_code(program, cwd=ROOT, environment={**os.environ, VARIABLE: "1"})
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("trained")
    assert run.stderr.count(f"{VARIABLE} is set, but nothing is watched") == 1
