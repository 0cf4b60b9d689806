"""Shared by all tests: one thread (the models are tiny), and a real Trainer on CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.records import make_activation, make_record
from tests.tensorboard.synthetic import busy_run, gan_run, steady_run, vanishing_run, write_run

__all__ = ["make_activation", "make_record"]  # fixtures

RUNS = {"busy": busy_run, "gan": gan_run, "steady": steady_run, "vanishing": vanishing_run}


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)  # a test before this one may have asked for it
    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile turns it off for good
    torch.manual_seed(0)


@pytest.fixture
def make_trainer(tmp_path: Any) -> Callable[..., pl.Trainer]:
    def make(**options: Any) -> pl.Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
        }
        return pl.Trainer(**{**defaults, **options})

    return make


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log folder with one run of each kind."""
    folder = tmp_path_factory.mktemp("board")
    for name, make in RUNS.items():
        write_run(folder / name, make())
    return folder
