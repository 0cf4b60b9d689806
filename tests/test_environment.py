"""Zero code: Lightning's entry points, off unless the environment says otherwise."""

from __future__ import annotations

import json
import os
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
from tests.modes.modes import OtherProblem, quiet_trainer
from tests.modes.training import Problem, batches

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
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


OPTIONS = {"clip": {"class_path": "ZClip", "init_args": {"z": 3.0}}, "on_nonfinite": "raise", "log_every_n_steps": 2}


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
    assert len(callback.records) == (6 if kind == "yaml" else 3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no/such/file.yaml", "readable file"),
        ("{broken", "nor JSON"),
        ('{"clip": {"class_path": "os.system", "init_args": {"command": "true"}}}', "no public class"),
    ],
)
def test_what_it_does_not_understand_it_refuses(value: str, words: str, environment: Any) -> None:
    environment(value)
    with pytest.raises(ValueError, match=words):
        callbacks_from_environment()
