"""Saves all that is needed to run a bad step again: one folder an incident, written whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_gradguard.harmless.rng import RngState
from lightning_gradguard.incident.attributes import Attributes
from lightning_gradguard.incident.batch import walk
from lightning_gradguard.incident.codec import encode, encode_batches
from lightning_gradguard.incident.locate import Localisation
from lightning_gradguard.incident.markdown import to_markdown
from lightning_gradguard.incident.trace import pieces
from lightning_gradguard.measurement.layout import Layout, clean_name
from lightning_gradguard.measurement.sharding import local

FORMAT = "lightning-gradguard incident"
VERSION = 2
_OF_PROCESS = "-of-"  # in the name of a folder that is being written: behind it the machine and the process
_HOST = re.sub(r"[^\w.]", "_", platform.node())
PAYLOADS = ("batch.pt", "rng.pt", "state.pt")


class BundleError(ValueError):
    """A bundle that cannot be used; the message says what is wrong with which file."""


@dataclass(frozen=True)
class MicroBatch:
    """One batch of the bad step, and the generators' state just before it; a step has several under accumulation.

    Attributes:
        batch: as the step got it.
        index: of the batch in its epoch.
        rng: what :func:`~lightning_gradguard.harmless.rng.capture_rng` took.
        process: which process it was for.
    """

    batch: Any
    index: int
    rng: RngState
    process: int = 0


@dataclass(frozen=True)
class Incident:
    """What is known of one bad step.

    Attributes:
        step: as in the records.
        optimizer: index of the optimizer.
        cause: ``"nan"``, ``"inf"``, ``"spike"`` or another word for what was seen.
        action: what was done about it.
        gradients: of the gradients as the optimizer would have applied them, by parameter name: how many elements
            are not finite, and a hash.
        place: what the list of bad layers says about the place.
        batches: the batches of the step, in order.
        buffers: the buffers before the first of them, by name.
        history: step, gradient norm and verdict of the last steps, this one included, oldest first.
        config: precision, accumulation and the like; numbers and strings.
        localisation: where it began, if that was looked for.
        not_localised: why it was not, if it was not.
        bad_buffers: names of the buffers that the step made non-finite.
        notes: what else a reader should know.
        suffix: of the folder's name, where several processes write.
        attributes: plain attributes of the module and its parts, and which of them the run had changed.
        exception: type and message of what the step raised, where that is the incident.
    """

    step: int
    optimizer: int
    cause: str
    action: str
    gradients: Mapping[str, Mapping[str, Any]]
    place: str
    batches: Sequence[MicroBatch]
    buffers: Mapping[str, Tensor]
    history: Sequence[tuple[int, float, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    localisation: Localisation | None = None
    not_localised: str | None = None
    bad_buffers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    suffix: str = ""
    attributes: Attributes = field(default_factory=dict)
    exception: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"step-{self.step:06d}-opt{self.optimizer}{self.suffix}"


@dataclass(frozen=True)
class Place:
    """Where an incident was saved, and what it lacks to be replayed."""

    path: Path
    lacks: tuple[str, ...] = ()


class IncidentFolder:
    """Writes incidents as folders below one folder, the first ones of a run and no more.

    What earlier runs left there stays, and takes nothing of the number, only of the bytes.

    Args:
        path: made when the first incident comes.
        max_incidents: how many bundles a run may leave; the first show the cause, later ones its consequences. One that
            could not be written counts: what fails so many times is not tried again.
        max_bytes: how much they may take together. Parameters, buffers and the state of Adam take 12 bytes a
            parameter. What would not fit is left out, the state first, and the report says so.

    Attributes:
        saved: the bundles that were written by this object.

    Raises:
        ValueError: if a limit is below 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_incidents: int = 3, max_bytes: int = 10 * 2**30) -> None:
        for name, value in (("max_incidents", max_incidents), ("max_bytes", max_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.path = Path(path)
        self.max_incidents = max_incidents
        self.max_bytes = max_bytes
        self.saved: list[Path] = []
        self._earlier = set(self._bundles())
        self._num_failed = 0

    @property
    def is_full(self) -> bool:
        """Tells whether this run has left as many bundles as it may, with those of all its processes."""
        return len(set(self._bundles()) - self._earlier) + self._num_failed >= self.max_incidents

    def _bundles(self) -> Iterator[str]:
        return (report.parent.name for report in self.path.glob("step-*/report.json"))

    def remove_leftovers(self) -> None:
        """Removes what processes of this machine that are no more have left half written."""
        for folder in self.path.glob(f".step-*{_OF_PROCESS}*"):
            host, _, number = folder.name.rpartition(_OF_PROCESS)[2].rpartition("-")[0].rpartition("-")
            if host == _HOST and number.isdigit() and not _is_alive(int(number)):
                shutil.rmtree(folder, ignore_errors=True)

    def save(
        self,
        incident: Incident,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scaler_state: dict[str, Any] | None = None,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        lacks: Sequence[str] = (),
    ) -> Place | None:
        """Writes one bundle and tells where; ``None`` if the folder is full or the disk would not take it.

        Files are flushed to the disk under another name first; the folder appears whole. Nothing that goes wrong
        here stops the run: it is a warning. Where the module holds parts of its weights only, ``parameters`` are the
        whole ones, or ``lacks`` says why there are none.
        """
        temporary: Path | None = None
        try:
            if self.is_full:
                return None
            self.path.mkdir(parents=True, exist_ok=True)
            final = _free_name(self.path / incident.name)
            prefix = f".{incident.name}{_OF_PROCESS}{_HOST}-{os.getpid()}-"
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path))
            state = lambda unsaved: _state(module, incident, optimizer, scaler_state, parameters, unsaved)  # noqa: E731
            left_out = self._write(temporary, final, incident, module, None if lacks else state, lacks)
            temporary.rename(final)
            _sync_folder(self.path)
            self.saved.append(final)
            return Place(final, tuple(left_out))
        except BaseException as problem:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(problem, Exception):  # Ctrl-C
                raise
            # A full disk is an OSError, or torch.save's RuntimeError; batches hold anything.
            self._num_failed += 1
            warnings.warn(
                f"the incident at step {incident.step} could not be saved to {self.path}: {problem}. "
                "Training goes on; free some space or choose another incident_dir.",
                stacklevel=2,
            )
            return None

    def _write(
        self,
        folder: Path,
        final: Path,
        incident: Incident,
        module: nn.Module,
        state: Callable[[list[str]], dict[str, Any]] | None,
        lacks: Sequence[str],
    ) -> list[str]:
        """Writes all files; tells what was left out, and why."""
        unsaved: list[str] = []
        payloads: dict[str, Any] = {
            "rng.pt": {"rngs": [encode(micro.rng, "rng", unsaved) for micro in incident.batches]},
            "batch.pt": {
                "batches": encode_batches([micro.batch for micro in incident.batches], unsaved),
                "indices": [micro.index for micro in incident.batches],
                "processes": [micro.process for micro in incident.batches],
            },
        }
        if state is not None:
            payloads["state.pt"] = state(unsaved)
        room = self.room
        files: dict[str, Any] = {}
        left_out = list(lacks)
        for name, content in payloads.items():
            size = sum(_nbytes(leaf) for leaf in tree_leaves(content) if isinstance(leaf, Tensor))
            if size > room:
                left_out.append(f"{name}: {size:,} bytes would pass max_bytes={self.max_bytes:,}")
                continue
            files[name] = _write_file(folder / name, functools.partial(torch.save, content))
            room -= files[name]["bytes"]
        report = describe(incident, module) | {"unsaved": unsaved, "left_out": left_out, "files": files}
        text = json.dumps(_jsonable(report), indent=1, allow_nan=False)
        _write_file(folder / "report.json", lambda file: file.write(text.encode()))
        markdown = to_markdown(json.loads(text), final)
        _write_file(folder / "report.md", lambda file: file.write(markdown.encode()))
        _sync_folder(folder)
        return left_out

    @property
    def room(self) -> int:
        """Tells how many bytes more it may hold."""
        return self.max_bytes - _size_of(self.path)


def describe(incident: Incident, module: nn.Module) -> dict[str, Any]:
    """Returns the content of ``report.json``, but for the files."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": incident.step,
        "optimizer": incident.optimizer,
        "cause": incident.cause,
        "action": incident.action,
        "place": incident.place,
        "gradients": {name: dict(digest) for name, digest in incident.gradients.items()},
        "exception": incident.exception,
        "localisation": incident.localisation,
        "not_localised": incident.not_localised,
        "bad_buffers": list(incident.bad_buffers),
        "batch_on_cpu": _on_cpu(incident, module),
        "history": [list(entry) for entry in incident.history],
        "notes": list(incident.notes),
        "config": dict(incident.config),
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "hyperparameters": {key: repr(value)[:200] for key, value in dict(getattr(module, "hparams", {})).items()},
        "versions": versions(),
    }


def digest_gradients(layout: Layout, gradients: Sequence[Tensor | None]) -> dict[str, dict[str, Any]]:
    """:func:`digest_gradient` of each by name; of shards, added up over processes, which have no hash of the whole."""
    found = {
        name: digest_gradient(grad) for name, grad in zip(layout.names, gradients, strict=True) if grad is not None
    }
    if layout.sharding.whole:
        return found
    none = {"nan": 0, "inf": 0}
    counts = [[found.get(name, none)[kind] for kind in ("nan", "inf")] for name in layout.names]
    device = layout.values()[0].device
    together = layout.sharding.sum(torch.tensor(counts, device=device)).ceil().long().tolist()
    return {n: {"nan": nan, "inf": inf, "sha256": None} for n, (nan, inf) in zip(layout.names, together, strict=True)}


def digest_gradient(grad: Tensor) -> dict[str, Any]:
    """Counts of NaN and infinite elements, and a hash of the bits (all NaN counting as the same)."""
    values = grad.detach()
    values = local(values)
    values = values.to_dense() if values.layout != torch.strided else values
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    values = torch.where(values.isnan(), torch.full_like(values, math.nan), values).contiguous().cpu()
    digest = hashlib.sha256(values.view(-1).view(torch.uint8).numpy().data).hexdigest()
    return {"nan": int(values.isnan().sum()), "inf": int(values.isinf().sum()), "sha256": digest}


def versions() -> dict[str, str]:
    """Returns what decides whether a replay can be exact to the bit: versions, machine, and settings of torch."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__}
    for name in ("lightning", "pytorch_lightning", "numpy", "lightning_gradguard"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    if torch.cuda.is_available():
        found["cuda"], found["gpu"] = str(torch.version.cuda), torch.cuda.get_device_name()
    found["num_threads"] = str(torch.get_num_threads())
    found["default_dtype"] = str(torch.get_default_dtype())
    found["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    found["deterministic"] = str(torch.are_deterministic_algorithms_enabled())
    return found


def _nbytes(tensor: Tensor) -> int:
    return sum(piece.nbytes for piece in pieces(tensor))


def _state(
    module: nn.Module,
    incident: Incident,
    optimizer: torch.optim.Optimizer | None,
    scaler_state: dict[str, Any] | None,
    parameters: Mapping[str, Tensor] | None,
    unsaved: list[str],
) -> dict[str, Any]:
    """Returns what ``state.pt`` holds: the model as it was before the step."""
    if parameters is None:
        parameters = {clean_name(name): parameter.detach() for name, parameter in module.named_parameters()}
    current = {clean_name(name): local(buffer) for name, buffer in module.named_buffers()}
    before = {clean_name(name): local(buffer) for name, buffer in incident.buffers.items()}
    names = {clean_name(name) for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {
        "parameters": encode(dict(parameters), "parameters", unsaved),
        "buffers": encode(current | before, "buffers", unsaved),
        "attributes": {part: [encode(values), changed] for part, (values, changed) in incident.attributes.items()},
        "frozen": sorted(names),
        "eval": [clean_name(name) for name, part in module.named_modules() if not part.training],
        "optimizer": None if optimizer is None else encode(optimizer.state_dict(), "optimizer", unsaved),
        "scaler": encode(scaler_state, "scaler", unsaved),
    }


def _write_file(path: Path, write: Callable[[Any], Any]) -> dict[str, Any]:
    with path.open("w+b") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest_file(path)}


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _on_cpu(incident: Incident, module: nn.Module) -> list[str]:
    """Tensors of the batches that lay on the CPU though the module did not (lengths of packed sequences, say)."""
    if all(parameter.device.type == "cpu" for parameter in module.parameters()):
        return []
    found: set[str] = set()
    for micro in incident.batches:
        found |= {path for path, item in walk(micro.batch) if isinstance(item, Tensor) and item.device.type == "cpu"}
    return sorted(found)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_alive(process: int) -> bool:
    """Tells whether a process of this machine is running; one of another user is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _free_name(path: Path) -> Path:
    """Returns the path, or with a number behind it if a run before this one left a bundle of the same step."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("step-*/*"))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _jsonable(asdict(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
