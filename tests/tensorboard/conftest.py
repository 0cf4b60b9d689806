"""Runs on disk, and TensorBoard's two ways to read them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.data import server_ingester
from tensorboard.data.provider import DataProvider
from tensorboard.util import grpc_util

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the html5lib that TensorBoard brings along
    import lightning_gradguard.tensorboard.plugin  # noqa: F401


def slow_provider(folder: Path, samples: int = 1000) -> DataProvider:
    """What ``--load_fast=false`` reads with."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"gradguard": samples})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def fast_provider(
    folder: Path, samples: int = 1000
) -> tuple[DataProvider, server_ingester.SubprocessServerDataIngester]:
    """What ``--load_fast=true`` reads with; the second value keeps its process alive."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=str(folder),
        reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin={"gradguard": samples},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TensorBoard lets go of the process while it runs
        ingester.start()
    return ingester.data_provider, ingester


@pytest.fixture(scope="session", params=["slow", "fast"])
def provider(request: pytest.FixtureRequest, logdir: Path) -> Iterator[DataProvider]:
    """The same runs through both of TensorBoard's loaders."""
    if request.param == "slow":
        yield slow_provider(logdir)
        return
    provider, ingester = fast_provider(logdir)
    yield provider
    ingester._stdin_handle.close()
