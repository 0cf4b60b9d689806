"""LightningCLI: every object of ours by class_path and init_args."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

import lightning_gradguard
from lightning_gradguard import AdaptiveGradientClipping, ClipPolicy, GradGuard, GradientNormMonitor, NonFiniteGuard
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.diagnose import default_rules
from tests.forked import run_script

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]


@pytest.fixture(autouse=True)
def _a_command_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])  # pytest's own would be taken for the program's


def cli(*args: Any) -> LightningCLI:
    return LightningCLI(
        BoringModel,
        BoringDataModule,
        args=[*QUIET, *map(str, args)],
        run=False,
        seed_everything_default=False,
        save_config_callback=None,
    )


def ours(found: LightningCLI) -> list[GradientCallback]:
    return [callback for callback in found.trainer.callbacks if isinstance(callback, GradientCallback)]


def test_the_example_configuration_trains(tmp_path: Path) -> None:
    command = ["fit", "--config", QUICKSTART / "cli_config.yaml"]
    limits = [
        "--trainer.limit_train_batches=12",
        "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false",
    ]
    done = run_script(QUICKSTART / "cli.py", *command, *limits, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "cli" / "gradients.jsonl").read_text().count("\n") >= 1


def test_the_example_configuration_holds_every_callback_that_has_a_role_of_its_own() -> None:
    config = yaml.safe_load((QUICKSTART / "cli_config.yaml").read_text())
    listed = {entry["class_path"].rpartition(".")[2] for entry in config["trainer"]["callbacks"]}
    assert listed == {"GradientNormMonitor", "AdaptiveGradientClipping", "NonFiniteGuard"}


ARGUMENTS = {
    "NormClip": {"max_norm": 1.0},
    "ValueClip": {"max_value": 0.5},
    "Chain": {"policies": [{"class_path": "lightning_gradguard.ZClip"}]},
}
POLICIES = [
    name
    for name in lightning_gradguard.__all__
    if isinstance(cls := getattr(lightning_gradguard, name), type)
    and issubclass(cls, ClipPolicy)
    and cls is not ClipPolicy
]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("holder", [AdaptiveGradientClipping, GradGuard], ids=lambda c: c.__name__)
def test_every_policy_is_configured_by_its_name(name: str, holder: type, tmp_path: Path) -> None:
    argument = "policy" if holder is AdaptiveGradientClipping else "clip"
    policy = {"class_path": f"lightning_gradguard.{name}", "init_args": ARGUMENTS.get(name, {})}
    entry = {"class_path": f"lightning_gradguard.{holder.__name__}", "init_args": {argument: policy}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [entry]}}))
    (callback,) = ours(cli("--config", file))
    callback = callback._parts[1] if isinstance(callback, GradGuard) else callback
    assert type(callback.policy).__name__ == name


def test_every_rule_is_configured_by_its_path(tmp_path: Path) -> None:
    paths = [f"{type(rule).__module__}.{type(rule).__name__}" for rule in default_rules()]
    rules = [{"class_path": path} for path in paths]
    entry = {"class_path": "lightning_gradguard.GradientNormMonitor", "init_args": {"rules": rules}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [entry]}}))
    (monitor,) = ours(cli("--config", file))
    assert isinstance(monitor, GradientNormMonitor)
    assert [type(rule) for rule in monitor.rules] == [type(rule) for rule in default_rules()]


def test_a_policy_for_each_optimizer_is_a_mapping_in_yaml_too(tmp_path: Path) -> None:
    policies = {0: {"class_path": "lightning_gradguard.ZClip"}, "head": None}
    entry = {"class_path": "lightning_gradguard.AdaptiveGradientClipping", "init_args": {"policy": policies}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [entry]}}))
    (clipping,) = ours(cli("--config", file))
    assert isinstance(clipping, AdaptiveGradientClipping)
    assert type(clipping.policy[0]).__name__ == "ZClip" and clipping.policy["head"] is None


def test_callbacks_are_added_on_the_command_line() -> None:
    added = cli(
        "--trainer.callbacks+=lightning_gradguard.NonFiniteGuard",
        "--trainer.callbacks.action=stop",
        "--trainer.callbacks+=lightning_gradguard.AdaptiveGradientClipping",
        "--trainer.callbacks.policy=lightning_gradguard.NormClip",
        "--trainer.callbacks.policy.max_norm=0.5",
    )
    guard, clipping = ours(added)
    assert isinstance(guard, NonFiniteGuard) and guard.options.action == "stop"
    assert isinstance(clipping, AdaptiveGradientClipping) and clipping.policy.max_norm == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NonFiniteGuard", ["--action {skip,rollback,stop,raise}", "--patience", "bad steps in a row"]),
        ("GradientNormMonitor", ["--norm_type", "how often to write"]),
    ],
)
def test_help_says_what_an_argument_is_for(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(f"--trainer.callbacks.help=lightning_gradguard.{name}")
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text.replace("--trainer.callbacks.", "--") for word in words), text


def test_what_a_constructor_refuses_the_command_line_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("--trainer.callbacks+=lightning_gradguard.NonFiniteGuard", "--trainer.callbacks.action=fly")
    assert "fly" in capsys.readouterr().err
