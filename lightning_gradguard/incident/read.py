"""Reads an incident bundle back, believing nothing in it before it is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.incident.bundle import FORMAT, PAYLOADS, VERSION, BundleError, MicroBatch, digest_file
from lightning_gradguard.incident.codec import decode, find_unsaved
from lightning_gradguard.measurement.layout import clean_name

_LARGEST_REPORT = 64 * 2**20
_REPORT_FIELDS: dict[str, type] = {
    "step": int, "optimizer": int, "cause": str, "gradients": dict, "config": dict, "versions": dict, "files": dict,
    "left_out": list, "unsaved": list, "history": list, "bad_buffers": list, "module": str, "batch_on_cpu": list,
}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A checked incident bundle.

    Attributes:
        path: its folder.
        report: the content of ``report.json``.
        batches: the batches of the step, with the generators' state before each.
        state: parameters, buffers, frozen names, names of modules in evaluation mode.
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
    folder = Path(path)
    report = _read_report(folder)
    missing = [f"{folder}: {reason}" for reason in report["left_out"]]
    if missing:
        raise BundleError("; ".join(missing) + ". A replay needs all of it: save incidents with a larger max_bytes.")
    contents = {name: _read_payload(folder / name, report["files"].get(name)) for name in PAYLOADS}
    try:
        return Bundle(folder, report, _batches(folder, contents), _state(folder, contents["state.pt"]))
    except BundleError:
        raise
    except Exception as problem:
        raise BundleError(f"{folder}: not laid out as a bundle ({type(problem).__name__}: {problem})") from problem


def load_state(bundle: Bundle, module: nn.Module) -> None:
    """Gives a module the weights, buffers, modes and frozen parameters of the incident, on the module's own device.

    Raises:
        BundleError: if names or shapes are not the same; the message lists them, and nothing is changed.
    """
    parameters = {clean_name(name): parameter for name, parameter in module.named_parameters()}
    buffers = {clean_name(name): buffer for name, buffer in module.named_buffers()}
    _check_fit(bundle, "parameter", bundle.state["parameters"], parameters)
    _check_fit(bundle, "buffer", bundle.state["buffers"], buffers)
    for name, parameter in parameters.items():
        parameter.data = bundle.state["parameters"][name].to(parameter.device).clone()
        parameter.requires_grad_(name not in bundle.state["frozen"])
        parameter.grad = None
    for name, buffer in buffers.items():
        buffer.data = bundle.state["buffers"][name].to(buffer.device).clone()
    for name, part in module.named_modules():
        part.training = clean_name(name) not in bundle.state["eval"]


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
    wrong = [name for name, kind in _REPORT_FIELDS.items() if not isinstance(report.get(name), kind)]
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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # unpicklers fail in many ways on what they were not given to eat
        raise BundleError(
            f"{path} is not plain data and was not loaded (objects in it could run code): {problem}"
        ) from problem
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds a {type(content).__name__}, not what a bundle holds")
    return content


def _batches(folder: Path, contents: dict[str, Any]) -> tuple[MicroBatch, ...]:
    batches, indices, rngs = (
        contents["batch.pt"]["batches"],
        contents["batch.pt"]["indices"],
        contents["rng.pt"]["rngs"],
    )
    if not batches or not len(batches) == len(indices) == len(rngs):
        raise BundleError(f"{folder}: {len(batches)} batches, {len(indices)} indices, {len(rngs)} generator states")
    found = [MicroBatch(decode(b), int(i), decode(r)) for b, i, r in zip(batches, indices, rngs, strict=True)]
    unsaved = [f"{item.path} ({item.description})" for micro in found for item in find_unsaved(micro.batch)]
    if unsaved:
        raise BundleError(
            f"{folder}: parts of the batch could not be saved, so it cannot run again: {'; '.join(unsaved)}"
        )
    return tuple(found)


def _state(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    for kind in ("parameters", "buffers"):
        bad = [name for name, value in content[kind].items() if not isinstance(value, Tensor)]
        if bad:
            raise BundleError(
                f"{folder}: {kind} that could not be saved (shards of a larger model?): {', '.join(bad[:5])}"
            )
    return {name: content[name] for name in ("parameters", "buffers", "frozen", "eval")}


def _check_fit(bundle: Bundle, kind: str, saved: dict[str, Tensor], have: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is not in the module" for name in saved.keys() - have.keys()]
    problems += [f"{name} is not in the bundle" for name in have.keys() - saved.keys()]
    problems += [
        f"{name} is {list(have[name].shape)}, in the bundle {list(saved[name].shape)}"
        for name in saved.keys() & have.keys()
        if have[name].shape != saved[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BundleError(
            f"the module does not fit {bundle.path} (written for {bundle.report['module']}): "
            f"{kind} {'; '.join(sorted(problems)[:5])}{more}"
        )
