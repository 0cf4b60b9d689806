"""Saves an incident of a model whose weights are spread over processes: one bundle, written by the first of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradguard.incident.batch import map_tensors
from lightning_gradguard.incident.bundle import Incident, IncidentFolder, MicroBatch, Place
from lightning_gradguard.incident.codec import encode
from lightning_gradguard.incident.decode import decode
from lightning_gradguard.measurement.layout import clean_name
from lightning_gradguard.measurement.sharding import is_distributed

# The batches of so many processes go into a bundle: those that saw the fault, or the first ones where nobody can tell.
_MOST_PROCESSES = 8


def holds_parts(outer: nn.Module) -> bool:
    """Tells whether this process holds parts of the parameters only."""
    return _is_flat(outer) or any(is_distributed(parameter) for parameter in outer.parameters())


def save(
    folder: IncidentFolder,
    incident: Incident,
    outer: nn.Module,
    scaler_state: dict[str, Any] | None,
    *,
    saw_it: bool,
    rank: int,
) -> Place | None:
    """Saves one incident together; every process must call it, and all of them are told where it went.

    Whole weights are gathered on the first process, by torch's distributed checkpoint, if they fit into the folder;
    otherwise there is the report with the batches alone, which says so. So are the batches of the processes that saw
    the fault in their own batch or loss; where none did, since it began in the backward pass, those of the first
    eight.

    Args:
        folder: where incidents go.
        incident: as this process knows it.
        outer: what the strategy wrapped around the model, or the model.
        scaler_state: of the loss scaler.
        saw_it: whether a batch or a loss of this process was not finite.
        rank: of this process.
    """
    batches = _gather_batches(incident.batches, saw_it, rank)
    needed, room = _whole_bytes(outer), _from_first(folder.room if rank == 0 else None)
    lacks = []
    if needed > room:
        lacks.append(f"state.pt: {needed:,} bytes would pass max_bytes={folder.max_bytes:,}")
    parameters = None if lacks else whole_parameters(outer)
    place = None
    if rank == 0:
        whole = replace(incident, batches=batches)
        place = folder.save(whole, outer, None, scaler_state, parameters=parameters, lacks=lacks)
    found: Place | None = _from_first(place)
    return found


def whole_parameters(outer: nn.Module) -> dict[str, Tensor]:
    """Every parameter as a whole tensor on the CPU of the first process, by name; nothing on the others.

    A collective: one tensor after the other is gathered, so that no device holds the whole model.
    """
    if _is_flat(outer):
        return _summoned(outer)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(outer, options=options)
    names = {clean_name(name) for name, _ in outer.named_parameters()}
    found = {clean_name(name): value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value for name, value in found.items() if name in names}


def _summoned(outer: nn.Module) -> dict[str, Tensor]:
    """Likewise of FSDP's first kind, by its own means: asked for its state on CPUs, it frees what it has just given."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    on_cpu = all(parameter.device.type == "cpu" for parameter in outer.parameters())
    moving = {"rank0_only": not on_cpu, "offload_to_cpu": not on_cpu}
    with FullyShardedDataParallel.summon_full_params(outer, writeback=False, **moving):
        if dist.get_rank() != 0:
            return {}
        return {clean_name(name): p.detach().cpu().clone() for name, p in outer.named_parameters()}


def _is_flat(outer: nn.Module) -> bool:
    return any(getattr(part, "_handle", None) is not None for part in outer.modules())


def _gather_batches(batches: Sequence[MicroBatch], saw_it: bool, rank: int) -> tuple[MicroBatch, ...]:
    """On the first process the batches of those that saw the fault, equal ones once; this process's own elsewhere."""
    world = dist.get_world_size()
    votes: list[Any] = [None] * world
    dist.all_gather_object(votes, saw_it)
    chosen = ([index for index, vote in enumerate(votes) if vote] or list(range(world)))[:_MOST_PROCESSES]
    mine = _packed(batches) if rank in chosen else None
    gathered: list[Any] = [None] * world
    dist.gather_object(mine, gathered if rank == 0 else None, dst=0)
    if rank != 0:
        return tuple(batches)
    found: dict[bytes, list[MicroBatch]] = {}  # several processes of a model have the same batch
    for process, packed in enumerate(gathered):
        if packed is not None:
            found.setdefault(packed[0], _unpacked(packed[1], process))
    return tuple(micro for micros in found.values() for micro in micros) or tuple(batches)


def _packed(batches: Sequence[MicroBatch]) -> tuple[bytes, bytes] | None:
    """A digest of batches, and their bytes as of a bundle's file; ``None`` if that cannot be: others may have them."""
    try:
        content = [[encode(micro.batch), micro.index, encode(micro.rng)] for micro in batches]
        content = map_tensors(content, lambda path, tensor: tensor.cpu())
        return hashlib.sha256(_saved([batch for batch, _, _ in content])).digest(), _saved(content)
    except Exception:  # a batch may hold anything
        return None


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes, process: int) -> list[MicroBatch]:
    content = torch.load(io.BytesIO(packed), weights_only=True)
    return [MicroBatch(decode(batch), index, decode(rng), process) for batch, index, rng in content]


def _whole_bytes(outer: nn.Module) -> int:
    """Bytes of all parameters together."""
    whole = sum(p.numel() * p.element_size() for p in outer.parameters() if is_distributed(p))
    local = sum(p.numel() * p.element_size() for p in outer.parameters() if not is_distributed(p))
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, local)
    return whole + int(sum(pieces))


def _from_first(value: Any) -> Any:
    """Returns what the first process has, on every process."""
    together = [value]
    dist.broadcast_object_list(together, src=0)
    return together[0]
