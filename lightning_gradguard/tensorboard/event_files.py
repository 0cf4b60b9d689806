"""Reads event files without a server."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from lightning_gradguard.tensorboard.checksum import masked_crc32c
from lightning_gradguard.tensorboard.flow import PLUGIN_NAME
from lightning_gradguard.tensorboard.store import FlowStore

_HEADER = struct.Struct("<Q4s")


def stores_of_event_files(folder: Path, left_out: list[str]) -> Iterator[tuple[FlowStore, str, int]]:
    """Every run and optimizer in the event files below a folder, with the store that has them.

    Args:
        folder: the log folder.
        left_out: gets a line for each file and each run that cannot be read, or not to its end.
    """
    multiplexer = EventMultiplexer(tensor_size_guidance={PLUGIN_NAME: 0})  # 0: keep all
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    store = FlowStore(MultiplexerDataProvider(multiplexer, str(folder)))
    runs = store.runs()
    left_out += [f"{path.relative_to(folder)} {why}" for path in event_files(folder) if (why := damage_of(path))]
    left_out += [f"run {run!r}: {why}" for run, why in store.unreadable.items()]
    for run in runs:
        for optimizer in run["optimizers"]:
            yield store, run["name"], optimizer


def event_files(folder: Path) -> list[Path]:
    """Returns the event files below a folder."""
    return sorted(path for path in folder.rglob("*tfevents*") if not path.is_dir())


def damage_of(path: Path) -> str | None:
    """Returns what is wrong with an event file, in words; ``None`` for a sound one, or one that a run is still writing.

    Each record is framed by its length and checksums of that and of its content; TensorBoard stops without a word at
    the first that does not fit.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            position = 0
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                is_sound = masked_crc32c(header[:8]) == header[8:]
                if is_sound and position + _HEADER.size + (length := _HEADER.unpack(header)[0]) + 4 <= size:
                    content, ending = file.read(length), file.read(4)
                    is_sound = masked_crc32c(content) == ending
                elif is_sound:
                    return None  # cut off in a record: a run that is writing, or was killed
                if not is_sound:
                    return f"is damaged at byte {position:,} of {size:,}: nothing after it was read"
                position = file.tell()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
