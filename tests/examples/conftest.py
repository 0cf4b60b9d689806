"""The examples are scripts, not a package: their folder goes on the path, as when one of them is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(autouse=True)
def _restore_threads_and_denormals():
    """The studies flush subnormal numbers to zero for speed; other tests must not."""
    import torch

    yield
    torch.set_flush_denormal(False)
