"""Records made by hand: what a rule sees, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
from lightning_gradguard.record import ActivationStats, StepRecord


@pytest.fixture
def make_record() -> Callable[..., StepRecord]:
    """A quiet step of a healthy net of six layers; fields are changed by name."""
    return quiet_record


@pytest.fixture
def make_activation() -> Callable[..., ActivationStats]:
    """The output of a healthy linear layer; fields are changed by name."""
    return quiet_activation
