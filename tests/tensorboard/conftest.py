"""Runs on disk, through both of TensorBoard's loaders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.data.provider import DataProvider

from tests.tensorboard.reading import fast_provider, slow_provider

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the html5lib that TensorBoard brings along
    import lightning_gradguard.tensorboard.plugin  # noqa: F401


@pytest.fixture(scope="session", params=["slow", "fast"])
def provider(request: pytest.FixtureRequest, logdir: Path) -> Iterator[DataProvider]:
    """The same runs, read to their end by both of TensorBoard's loaders."""
    if request.param == "slow":
        yield slow_provider(logdir)
        return
    with fast_provider(logdir) as provider:
        yield provider
