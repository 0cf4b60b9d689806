"""Reads an incident bundle back, believing nothing in it before it is checked."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.harmless.rng import capture_rng, restore_rng
from lightning_gradguard.incident.batch import named_tensors
from lightning_gradguard.incident.bundle import FORMAT, PAYLOADS, VERSION, BundleError, MicroBatch, digest_file
from lightning_gradguard.incident.decode import decode
from lightning_gradguard.incident.trace import pieces

_LARGEST_REPORT = 64 * 2**20
_MOST_THREADS = 4096


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_positive(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _are_gradients(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and all(_is_count(entry.get(key)) for key in ("nan", "inf"))
        and isinstance(entry.get("sha256"), str | None)
        for entry in value.values()
    )


def _is_exception(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and isinstance(value.get("type"), str))


def _is_dtype(name: Any) -> bool:
    found = getattr(torch, str(name).removeprefix("torch."), None)
    return isinstance(found, torch.dtype) and found.is_floating_point


def _is_autocast(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("device_type"), str) and _is_dtype(value.get("dtype"))


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("inf", "nan")


def _is_thread_count(value: Any) -> bool:
    return isinstance(value, str) and value.isdecimal() and 1 <= int(value) <= _MOST_THREADS


# What a report must hold, and what its run configuration and its versions hold of what a replay goes by.
_REPORT: dict[str, Callable[[Any], bool]] = {
    "step": lambda v: type(v) is int,
    "optimizer": _is_count,
    "cause": lambda v: isinstance(v, str),
    "gradients": _are_gradients,
    "config": lambda v: isinstance(v, dict),
    "versions": lambda v: isinstance(v, dict),
    "files": lambda v: isinstance(v, dict),
    "left_out": _are_words,
    "unsaved": _are_words,
    "history": lambda v: isinstance(v, list),
    "bad_buffers": _are_words,
    "module": lambda v: isinstance(v, str),
    "batch_on_cpu": _are_words,
    "exception": _is_exception,
}
_CONFIG: dict[str, Callable[[Any], bool]] = {
    "accumulate_grad_batches": _is_positive,
    "loss_scale": _is_scale,
    "world_size": _is_positive,
    "autocast": _is_autocast,
    "default_dtype": _is_dtype,
}
_VERSIONS: dict[str, Callable[[Any], bool]] = {"num_threads": _is_thread_count, "default_dtype": _is_dtype}


@dataclass(frozen=True)
class Bundle:
    """A checked incident bundle.

    Attributes:
        path: its folder.
        report: the content of ``report.json``.
        batches: the batches of the step, with the generators' state before each.
        state: parameters, buffers, plain attributes, frozen names, names of modules in evaluation mode.
    """

    path: Path
    report: dict[str, Any]
    batches: tuple[MicroBatch, ...]
    state: dict[str, Any]


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Reads a bundle; nothing in it is run, whatever it is.

    Raises:
        BundleError: if it is not a bundle, is damaged, truncated, of a newer version, holds objects that could run
            code, or lacks what a replay needs. The message names the file and what is wrong with it.
    """
    try:
        folder = Path(path)
        report = _read_report(folder)
        missing = [f"{folder}: {reason}" for reason in report["left_out"]]
        if missing:
            raise BundleError(
                "; ".join(missing) + ". A replay needs all of it: save incidents with a larger max_bytes."
            )
        contents = {name: _read_payload(folder / name, report["files"].get(name)) for name in PAYLOADS}
        return Bundle(folder, report, _batches(folder, contents), _state(folder, contents["state.pt"]))
    except BundleError:
        raise
    except OSError as problem:
        raise BundleError(f"{path} cannot be read: {problem}") from problem
    except Exception as problem:  # whatever a forger thinks of
        raise BundleError(f"{path}: not laid out as a bundle ({type(problem).__name__}: {problem})") from problem


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file():
        raise BundleError(f"{folder} is not an incident bundle: there is no report.json in it")
    if path.stat().st_size > _LARGEST_REPORT:
        raise BundleError(f"{path} is larger than {_LARGEST_REPORT:,} bytes: not ours")
    try:
        report = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise BundleError(f"{path} is damaged: {problem}") from problem
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise BundleError(f"{path} was not written by lightning_gradguard")
    if report.get("version") != VERSION:
        raise BundleError(
            f"{path} has version {report.get('version')!r}, this is version {VERSION}: "
            "replay it with the lightning_gradguard that wrote it"
        )
    wrong = [name for name, is_fine in _REPORT.items() if not is_fine(report.get(name))]
    if not wrong:
        for part, checks in (("config", _CONFIG), ("versions", _VERSIONS)):
            found = report[part]
            wrong += [
                f"{part}.{n}" for n, is_fine in checks.items() if found.get(n) is not None and not is_fine(found[n])
            ]
    if wrong:
        raise BundleError(f"{path} is damaged: missing or of the wrong type: {', '.join(wrong)}")
    return report


def _read_payload(path: Path, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        raise BundleError(f"{path.parent / 'report.json'} does not list {path.name}")
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleError(f"{path} is truncated or damaged: {size:,} bytes, {entry['bytes']} were written")
    if digest_file(path) != entry["sha256"]:
        raise BundleError(f"{path} is damaged: its content is not what was written")
    _check_archive(path, size)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # unpicklers fail in many ways on what they were not given to eat
        first_line = str(problem).strip().partition("\n")[0]
        raise BundleError(
            f"{path} is not plain data and was not loaded (objects in it could run code): {first_line}"
        ) from problem
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds a {type(content).__name__}, not what a bundle holds")
    _check_memory(path, content)
    return content


def _check_archive(path: Path, size: int) -> None:
    """An archive as torch writes it: nothing in it is compressed, so that it holds no more than its own size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as problem:
        raise BundleError(f"{path} is not plain data and was not loaded: torch.save did not write it") from problem
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BundleError(f"{path} is compressed, which torch.save never does: it was not loaded")
    if sum(entry.file_size for entry in entries) > size:
        raise BundleError(f"{path} claims to hold more than its own {size:,} bytes: it was not loaded")


def _check_memory(path: Path, content: dict[str, Any]) -> None:
    """Tensors may be larger than their file, being views that repeat one number; a replay copies them whole."""
    found = [piece for _, tensor in named_tensors(content) for piece in pieces(tensor)]
    if any(piece.device.type == "meta" for piece in found):
        raise BundleError(f"{path} holds a tensor without numbers")
    needed = sum(piece.nbytes for piece in found)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if needed > have:
        raise BundleError(f"{path} would take {needed:,} bytes of memory, and this machine has {have:,}")


def _batches(folder: Path, contents: dict[str, Any]) -> tuple[MicroBatch, ...]:
    payload = contents["batch.pt"]
    batches, indices, rngs = payload["batches"], payload["indices"], contents["rng.pt"]["rngs"]
    processes = payload.get("processes") or [0] * len(batches)
    if not batches or not len(batches) == len(indices) == len(rngs) == len(processes):
        raise BundleError(f"{folder}: {len(batches)} batches, {len(indices)} indices, {len(rngs)} generator states")
    states = [decode(rng) for rng in rngs]
    _check_generators(folder, states)
    batches = decode(batches)  # together: what was one object in two batches is one again
    found = zip(batches, indices, states, processes, strict=True)
    return tuple(MicroBatch(batch, int(index), rng, int(process)) for batch, index, rng, process in found)


def _check_generators(folder: Path, states: list[Any]) -> None:
    now = capture_rng()
    try:
        for state in states:
            restore_rng(state)
    except Exception as problem:
        raise BundleError(f"{folder}: rng.pt holds no states of generators ({problem})") from problem
    finally:
        restore_rng(now)


def _state(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    for kind in ("parameters", "buffers"):
        bad = [name for name, value in content[kind].items() if not isinstance(value, Tensor)]
        if bad:
            raise BundleError(f"{folder}: {kind} that could not be saved: {', '.join(map(str, bad[:5]))}")
    for kind in ("frozen", "eval"):
        if not _are_words(content[kind]):
            raise BundleError(f"{folder}: state.pt does not list the names under {kind!r}")
    attributes = {str(part): (decode(found[0]), found[1]) for part, found in content.get("attributes", {}).items()}
    if not all(isinstance(values, dict) and _are_words(changed) for values, changed in attributes.values()):
        raise BundleError(f"{folder}: state.pt does not hold attributes by module")
    return {**{name: content[name] for name in ("parameters", "buffers", "frozen", "eval")}, "attributes": attributes}
