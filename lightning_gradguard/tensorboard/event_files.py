"""Reads event files without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from lightning_gradguard.tensorboard.flow import PLUGIN_NAME
from lightning_gradguard.tensorboard.store import FlowStore


def stores_of_event_files(folder: Path) -> Iterator[tuple[FlowStore, str, int]]:
    """Every run and optimizer in the event files below a folder, with the store that has them."""
    multiplexer = EventMultiplexer(tensor_size_guidance={PLUGIN_NAME: 0})  # 0: keep all
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    store = FlowStore(MultiplexerDataProvider(multiplexer, str(folder)))
    for run in store.runs():
        for optimizer in run["optimizers"]:
            yield store, run["name"], optimizer
