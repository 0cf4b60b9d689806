"""TensorBoard's two ways to read runs, and how to wait until it has read them to their end."""

from __future__ import annotations

import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.data.provider import DataProvider
from tensorboard.util import grpc_util

Ends = dict[str, float]  # run, then the time at which the last of its events was written


def slow_provider(folder: Path, samples: int = 1000) -> DataProvider:
    """What ``--load_fast=false`` reads with; it has read everything."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"gradguard": samples})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


@contextmanager
def fast_provider(folder: Path, samples: int = 1000) -> Iterator[DataProvider]:
    """What ``--load_fast=true`` reads with, once it has read everything: it answers long before."""
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
    wait_until_read(folder, lambda: read_ends(ingester.data_provider))
    yield ingester.data_provider
    ingester._stdin_handle.close()


def written_ends(folder: Path) -> Ends:
    """How far each run of a folder was written. Records are stepped over, so that this costs no time."""
    ends: Ends = {}
    for path in folder.rglob("events.out.tfevents.*"):
        run = path.parent.relative_to(folder).as_posix()
        ends[run] = max(ends.get(run, 0.0), _last_event(path).wall_time)
    return ends


def _last_event(path: Path) -> Event:
    with path.open("rb") as file:
        while header := file.read(12):  # how long the record is, and the checksum of that
            record = file.read(struct.unpack("<Q4x", header)[0])
            file.seek(4, 1)  # past the checksum of the record
    return Event.FromString(record)


def read_ends(provider: DataProvider) -> Ends:
    """How far a loader has read each run; every event that we write has a tensor of the tab in it."""
    tensors = provider.list_tensors(RequestContext(), experiment_id="", plugin_name="gradguard")
    return {run: max(series.max_wall_time for series in tags.values()) for run, tags in tensors.items()}


def wait_until_read(folder: Path, read: Callable[[], Ends], timeout: float = 120.0) -> None:
    """Waits until every run of a folder is read to the last event that was written; says which are not.

    A loader lists a run as soon as it has seen its first events, and runs one by one: what it lists is no sign of what
    it will list.
    """
    written, end = written_ends(folder), time.monotonic() + timeout
    while (ends := read()) != written:
        if time.monotonic() > end:
            missing = {
                run: f"read to {ends.get(run)} of {last}" for run, last in written.items() if ends.get(run) != last
            }
            raise TimeoutError(f"not read to the end within {timeout:g} s: {missing}; read: {sorted(ends)}")
        time.sleep(0.05)
