"""Zero code: what was not asked for is not done, and what was asked for steps aside where the program objects."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_gradguard import GradGuard, NormClip, ZClip
from lightning_gradguard.callbacks.from_environment import GradGuardFromEnvironment
from lightning_gradguard.environment import VARIABLE
from tests.models import Pair, Regression, batches, weights
from tests.modes.modes import OtherProblem, quiet_trainer
from tests.modes.training import Problem
from tests.modes.training import batches as numbers

Environment = Callable[[Any], None]
CLIP = {"class_path": "ZClip", "init_args": {"z": 3.0}}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setattr("lightning_gradguard.callbacks.from_environment._warned", set())

    def choose(value: Any) -> None:
        if value is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, value if isinstance(value, str) else json.dumps(value))

    return choose


def added(trainer: Any) -> list[Any]:
    """The callbacks that nobody listed."""
    return [c for c in trainer.callbacks if isinstance(c, GradGuardFromEnvironment)]


class Broken(Regression):
    """Its loss is NaN from the fourth batch on, for good."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(range(3, 100), math.nan))


class WithLBFGS(Regression):
    def __init__(self) -> None:
        super().__init__(optimizer=lambda parameters: torch.optim.LBFGS(parameters, lr=0.1))


class Raises(Regression):
    """A program that fails by itself."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 5:
            raise ArithmeticError("of the program's own")
        return super().training_step(batch, batch_idx)


def end_of(make_trainer: Any, model: pl.LightningModule, **options: Any) -> tuple[Any, ...]:
    """How a run ended: its steps, its weights, its error, what it warned of."""
    trainer = make_trainer(max_epochs=3, **options)
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(model, batches())
        except Exception as raised:
            error = repr(raised)
    return trainer.global_step, error, sorted(str(w.message) for w in caught), weights(model)


@pytest.mark.parametrize("model", [Regression, Broken, WithLBFGS, Raises, Pair])
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}], ids=str)
def test_watching_leaves_a_program_as_it_is(
    model: Any, options: dict[str, Any], make_trainer: Any, environment: Environment
) -> None:
    ends = []
    for value in (None, "1"):
        environment(value)
        torch.manual_seed(0)
        ends.append(end_of(make_trainer, model(), **options))
    assert ends[0][:2] == ends[1][:2]
    added_words = [words for words in ends[1][2] if words not in ends[0][2]]
    told = ["LBFGS asks for gradients several times"] if model is WithLBFGS else []  # of what records then show
    assert len(added_words) == len(told) and all(map(str.startswith, added_words, told))
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(ends[0][3], ends[1][3], strict=True))


@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("value", ["1", {"clip": CLIP}], ids=["watching", "acting"])
def test_one_list_of_callbacks_serves_two_trainers(
    package: Any, value: Any, environment: Environment, tmp_path: Path
) -> None:
    environment(value)
    listed = [package.callbacks.Timer()]
    for times in (1, 2, 3):
        trainer = quiet_trainer(str(tmp_path), listed, trainer_class=package.Trainer)
        trainer.fit(Problem() if package is pl else OtherProblem(), numbers())
        assert [len(c.records) for c in added(trainer)] == [0] * (times - 1) + [6]


def test_a_checkpoint_of_a_watched_run_holds_nothing_of_ours(
    make_trainer: Any, environment: Environment, tmp_path: Path
) -> None:
    saved = []
    for value in (None, "1"):
        environment(value)
        trainer = make_trainer()
        trainer.fit(Regression(), batches())
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        saved.append(torch.load(tmp_path / "run.ckpt", weights_only=True))
    assert saved[0].keys() == saved[1].keys()
    assert saved[0]["callbacks"] == saved[1]["callbacks"]


def test_what_acts_is_resumed_and_the_checkpoint_loads_without_us(
    make_trainer: Any, environment: Environment, tmp_path: Path
) -> None:
    path = str(tmp_path / "run.ckpt")
    environment({"clip": CLIP})
    trainer = make_trainer()
    trainer.fit(Regression(), batches())
    trainer.save_checkpoint(path)
    resumed = make_trainer(max_epochs=2)
    resumed.fit(Regression(), batches(), ckpt_path=path)
    (first,), (second,) = added(trainer), added(resumed)
    assert second.records[0].step == first.records[-1].step + 1
    before, after = (c._session.pipelines[0].state_dict()["counters"]["steps"] for c in (first, second))
    assert (before, after) == (8, 16)
    environment(None)
    make_trainer(max_epochs=2).fit(Regression(), batches(), ckpt_path=path)


CONFLICTS: dict[str, tuple[Any, type[pl.LightningModule], dict[str, Any], str, tuple[str, ...]]] = {
    "the Trainer clips": ({"clip": CLIP}, Regression, {"gradient_clip_val": 10.0}, "clipping", ()),
    "the Trainer clips, the guard stays": (
        {"clip": CLIP, "on_nonfinite": "skip"},
        Regression,
        {"gradient_clip_val": 10.0},
        "clipping",
        ("survive",),
    ),
    "LBFGS": ({"on_nonfinite": "skip"}, WithLBFGS, {}, "the guard against NaN", ()),
    "LBFGS, clipping stays": ({"clip": CLIP, "on_nonfinite": "stop"}, WithLBFGS, {}, "the guard", ("tame",)),
    "both": (
        {"clip": CLIP, "on_nonfinite": "skip"},
        WithLBFGS,
        {"gradient_clip_val": 0.5},
        "clipping and the guard against NaN",
        (),
    ),
}


@pytest.mark.filterwarnings("ignore:LBFGS asks for gradients several times")
@pytest.mark.parametrize("case", CONFLICTS)
def test_what_acts_steps_aside_where_it_cannot_be_kept_and_says_so_once(
    case: str, make_trainer: Any, environment: Environment
) -> None:
    value, model, options, words, kept = CONFLICTS[case]
    environment(value)
    with pytest.warns(UserWarning, match=f"^{VARIABLE}: {words} .*steps? aside") as told:
        for _ in range(2):
            trainer = make_trainer(**options)
            trainer.fit(model(), batches())
    (message,) = [str(warning.message) for warning in told if VARIABLE in str(warning.message)]
    assert "GradGuardFromEnvironment" not in message
    (callback,) = added(trainer)
    assert callback._session.plan.acting == kept
    assert callback.records and trainer.global_step > 0


def test_a_policy_for_an_optimizer_that_a_program_has_not_steps_aside(
    make_trainer: Any, environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("clip:\n  1: {class_path: ZClip}\n", encoding="utf-8")
    environment(str(path))
    trainer = make_trainer()
    with pytest.warns(UserWarning, match=f"{VARIABLE}: clipping steps aside .* neither an optimizer"):
        trainer.fit(Regression(), batches())
    assert len(added(trainer)[0].records) == 8


def test_a_callback_of_ours_in_the_list_goes_before_what_the_variable_asks_for(
    make_trainer: Any, environment: Environment
) -> None:
    environment({"clip": CLIP})
    own = GradGuard(clip=NormClip(1.0))
    with pytest.warns(UserWarning, match=f"{VARIABLE} steps aside for a Trainer that lists GradGuard"):
        trainer = make_trainer(callbacks=[own])
        trainer.fit(Regression(), batches())
    assert len(own.records) == 8 and added(trainer)[0].records == []


def test_the_same_conflict_in_a_callback_that_was_listed_is_an_error(make_trainer: Any) -> None:
    with pytest.raises(MisconfigurationException, match="gradient_clip_val=None"):
        make_trainer(callbacks=[GradGuard(clip=ZClip())], gradient_clip_val=10.0).fit(Regression(), batches())


def test_acting_is_done_when_asked_for(make_trainer: Any, environment: Environment) -> None:
    environment({"on_nonfinite": "skip"})
    model = Regression({3: math.nan})
    trainer = make_trainer()
    with pytest.warns(UserWarning, match="step 3 was skipped"):
        trainer.fit(model, batches())
    assert [r.verdict for r in added(trainer)[0].records].count("skipped") == 1
    assert all(bool(weight.isfinite().all()) for weight in weights(model))
