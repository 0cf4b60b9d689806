"""What a run says of itself, in Lightning's own logging, however it ends."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lightning_gradguard import AdaptiveGradientClipping, GradGuard, GradientNormMonitor, NonFiniteGuard, NormClip
from lightning_gradguard.guard.guard import NonFiniteGradientError
from tests.forked import run_code
from tests.models import Pair, Regression, batches

ROOT = Path(__file__).parents[2]


class Deep(Regression):
    """Twelve sigmoid layers: the gradient vanishes on its way to the input."""

    def __init__(self, at_batch: Callable[[int], None] = lambda index: None, factors: Any = None) -> None:
        super().__init__(factors, lambda params: torch.optim.SGD(params, lr=1e-3))
        layers = [layer for _ in range(11) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), *layers, nn.Linear(8, 1))
        self.at_batch = at_batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.at_batch(self.global_step)
        return super().training_step(batch, batch_idx)


def calm(factors: Any = None) -> Regression:
    """A model with which all is well, but for the batches that ``factors`` spoils."""
    return Regression(factors, lambda params: torch.optim.SGD(params, lr=1e-3))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What our own logger was handed, in order, without the line breaks."""
    caplog.set_level(logging.INFO, "lightning.pytorch.gradguard")
    return lambda: [" ".join(r.getMessage().split()) for r in caplog.records if r.name == "lightning.pytorch.gradguard"]


def raising(error: BaseException, step: int = 30) -> Callable[[int], None]:
    def at(index: int) -> None:
        if index == step:
            raise error

    return at


def test_a_finding_is_said_when_it_comes_in_short_when_it_becomes_graver_and_at_the_end(make_trainer, said):
    make_trainer(callbacks=[GradGuard()], max_epochs=5).fit(Deep(), batches())
    *coming, last = said()
    first, graver = [text for text in coming if "vanishing-over-depth" in text.split("likely")[0]]
    assert first.startswith("GradGuard at step 2: warning vanishing-over-depth")
    assert "likely: " in first and "1. " in first and "2. " in first
    step = int(graver.split()[3].rstrip(":"))
    assert step > 2 and graver.startswith(f"GradGuard at step {step}: critical vanishing-over-depth (since step 2,")
    assert "likely: " not in graver and "try: " in graver, "what was explained is not explained again"
    assert last.startswith("GradGuard: done after 40 steps, none skipped, no spike, ")
    assert "vanishing-over-depth (since step" in last and "try: " in last
    assert "layer, input first" in last


def test_a_finding_is_a_warning_and_a_summary_is_an_information(make_trainer, caplog, said):
    make_trainer(callbacks=[GradGuard()], max_epochs=5).fit(Deep(), batches())
    levels = [r.levelname for r in caplog.records if r.name == "lightning.pytorch.gradguard"]
    assert len(levels) > 1 and levels == ["WARNING"] * (len(levels) - 1) + ["INFO"]


def test_a_healthy_run_says_that_there_is_nothing_to_report(make_trainer, said):
    make_trainer(callbacks=[GradGuard(clip=NormClip(1e6))]).fit(calm(), batches())
    (text,) = said()
    assert (
        " ".join(text.split())
        == "GradGuard: done after 8 steps, none clipped, none skipped, no spike. Nothing to report."
    )


@pytest.mark.parametrize(
    ("options", "model", "error", "words"),
    [
        ({"max_epochs": 5}, lambda: Deep(), None, "done after 40 steps"),
        ({"max_steps": 33, "max_epochs": 9}, lambda: Deep(), None, "done after 33 steps"),
        ({"max_epochs": 9, "callbacks": "early"}, lambda: Deep(), None, "stopped early after"),
        ({"max_epochs": 9, "callbacks": "time"}, lambda: Deep(), None, "stopped early after"),
        (
            {"max_epochs": 9},
            lambda: Deep(raising(RuntimeError("mine"))),
            RuntimeError,
            "ended by RuntimeError after 30",
        ),
        ({"max_epochs": 9}, lambda: Deep(raising(KeyboardInterrupt())), SystemExit, "interrupted after 30 steps"),
        ({"max_epochs": 9}, lambda: Deep(raising(SIGTERMException())), SIGTERMException, "ended by SIGTERM after 30"),
    ],
    ids=["done", "max_steps", "early stop", "max_time", "user error", "ctrl-c", "sigterm"],
)
def test_however_a_run_ends_it_is_summed_up_once(make_trainer, said, options, model, error, words):
    extra = {
        "early": [EarlyStopping("train_loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)],
        "time": [Timer(timedelta(microseconds=1), interval="step")],
    }
    callbacks = [GradGuard(), *extra.get(options.pop("callbacks", ""), [])]
    trainer = make_trainer(callbacks=callbacks, **options)
    handler = signal.getsignal(signal.SIGINT)
    try:
        if error is None:
            trainer.fit(model(), batches())
        else:
            with pytest.raises(error):
                trainer.fit(model(), batches())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning lets Ctrl-C be ignored from then on
    ends = [text for text in said() if not text.startswith("GradGuard at step")]
    assert len(ends) == 1
    assert ends[0].startswith(f"GradGuard: {words}")


@pytest.mark.filterwarnings("ignore:step 3 was skipped", "ignore:Detected call of")
@pytest.mark.parametrize(
    ("guard", "error", "words"),
    [
        (
            GradGuard(on_nonfinite="raise"),
            NonFiniteGradientError,
            "stopped by the guard (NonFiniteGradientError) after 4 steps",
        ),
        (GradGuard(patience=1), NonFiniteGradientError, "stopped by the guard (NonFiniteGradientError) after 4 steps"),
        (GradGuard(on_nonfinite="stop"), None, "stopped by the guard after 4 steps"),
        (GradGuard(on_nonfinite="skip"), None, "done after 8 steps, 1 not finite and skipped (12 %)"),
    ],
    ids=["raise", "patience", "stop", "skip"],
)
def test_what_the_guard_did_is_told(make_trainer, said, guard, error, words):
    trainer = make_trainer(callbacks=[guard], min_epochs=0)
    if error is None:
        trainer.fit(calm({3: math.nan}), batches())
    else:
        with pytest.raises(error):
            trainer.fit(calm({3: math.nan}), batches())
    assert said()[-1].startswith(f"GradGuard: {words}")
    assert "1 not finite and skipped" in said()[-1]


def test_steps_since_the_last_record_are_counted(make_trainer, said):
    guard = GradGuard(clip=NormClip(1e-3), log_every_n_steps=5)
    model = Deep(raising(RuntimeError(), step=8))
    with pytest.raises(RuntimeError):
        make_trainer(callbacks=[guard]).fit(model, batches(20))
    assert "after 8 steps, all clipped" in said()[-1]


@pytest.mark.filterwarnings("ignore:step 3 was skipped")
def test_what_was_saved_is_named_with_the_next_command(make_trainer, said, tmp_path):
    guard = GradGuard(incident_dir=tmp_path / "incidents")
    make_trainer(callbacks=[guard]).fit(calm({3: math.nan}), batches())
    bundle = tmp_path / "incidents" / "step-000003-opt0"
    assert f"gradguard replay {bundle} --module my.module:factory" in said()[-1]


def test_each_optimizer_has_its_own_line(make_trainer, said):
    make_trainer(callbacks=[GradGuard()]).fit(Pair(), batches())
    assert "optimizer 0's 8 steps" in said()[-1] and "optimizer 1's 8 steps" in said()[-1]


@pytest.mark.parametrize(
    "callback",
    [AdaptiveGradientClipping(NormClip(1.0)), NonFiniteGuard()],
    ids=lambda callback: type(callback).__name__,
)
def test_a_role_alone_sums_up_too(make_trainer, said, callback):
    make_trainer(callbacks=[callback]).fit(calm(), batches())
    assert said()[-1].startswith("GradGuard: done after 8 steps")


@pytest.mark.parametrize("kind", [GradGuard, GradientNormMonitor])
def test_an_argument_quiets_it(make_trainer, said, kind):
    make_trainer(callbacks=[kind(verbose=False)], max_epochs=5).fit(Deep(), batches())
    assert said() == []


def test_an_end_before_the_first_step_is_the_users_own(make_trainer, said):
    with pytest.raises(RuntimeError):
        make_trainer(callbacks=[GradGuard()]).fit(Deep(raising(RuntimeError(), step=0)), batches())
    assert said() == []


def test_a_second_fit_has_its_own_end(make_trainer, said):
    guard = GradGuard()
    for _ in range(2):
        make_trainer(callbacks=[guard]).fit(calm(), batches())
    assert len(said()) == 2


def test_it_reaches_a_plain_terminal_without_progress_bar_and_logger(tmp_path):
    program = (
        "import lightning.pytorch as pl; from lightning_gradguard import GradGuard; "
        "from tests.models import Regression, batches; "
        "pl.Trainer(accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[GradGuard()],"
        "enable_progress_bar=False, enable_model_summary=False).fit(Regression(), batches())"
    )
    result = run_code(program, cwd=tmp_path)
    assert "GradGuard: done after 8 steps" in result.stderr
