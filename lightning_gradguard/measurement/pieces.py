"""Which piece of each parameter this process holds, whoever cut them: ``DTensor``, FSDP1, or DDP with a hook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_gradguard.measurement.sharding import Params, is_distributed, local, num_processes


@dataclass(frozen=True)
class Piece:
    """What this process holds of one parameter.

    Attributes:
        shape: of the whole parameter.
        replicas: how many processes hold the same piece.
        device: where it lives.
        dtype: of its elements.
        offset: where the piece begins in each dimension of the whole.
        elements: for a slice of the flattened whole (FSDP1), which elements it has, as begin and end; else ``None``.
    """

    shape: tuple[int, ...]
    replicas: int
    device: torch.device
    dtype: torch.dtype
    offset: tuple[int, ...] = ()
    elements: tuple[int, int] | None = None


def find_pieces(module: nn.Module, parameters: Params) -> tuple[tuple[Piece, ...], bool]:
    """Finds this process's piece of each parameter, and tells whether pieces are slices of flattened groups (FSDP1).

    No pieces where every process holds, and applies, whole equal gradients.

    Args:
        module: the outermost wrapper (FSDP, DDP) or the plain module.
        parameters: those of one optimizer.
    """
    if any(is_distributed(parameter) for parameter in parameters):
        return tuple(_piece(parameter) for parameter in parameters), False
    if flat := _flat_pieces(module):
        return tuple(flat.get(parameter) or _piece(parameter) for parameter in parameters), True
    if any(_may_disagree(part) for part in module.modules()):
        return tuple(_piece(parameter) for parameter in parameters), False
    return (), False


def _piece(parameter: Any) -> Piece:
    shape, home = tuple(parameter.shape), local(parameter)
    if not is_distributed(parameter):
        return Piece(shape, num_processes(), home.device, home.dtype, (0,) * len(shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = parameter.device_mesh, parameter.placements
    whole = (mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_replicate())
    replicas = math.prod(whole) * (num_processes() // mesh.size())
    _, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Piece(shape, replicas, home.device, home.dtype, tuple(offset))


def _flat_pieces(module: nn.Module) -> dict[nn.Parameter, Piece]:
    """Returns what this process holds of the parameters under FSDP1; empty where there is none."""
    found: dict[nn.Parameter, Piece] = {}
    for wrapper in module.modules():
        handle = getattr(wrapper, "_handle", None)
        flat: Any = getattr(handle, "flat_param", None)
        if handle is None or flat is None:
            continue
        sharded, home = handle.uses_sharded_strategy, (flat.device, flat.dtype)
        replicas = num_processes() // handle.process_group.size() if sharded else num_processes()
        if flat._params is None:  # use_orig_params=False: one parameter, all layers in it
            found[flat] = Piece(tuple(flat._unpadded_unsharded_size), replicas, *home, elements=(0, 0))
            continue
        for parameter, size, info in zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True):
            shape = tuple(size)
            if not sharded:
                found[parameter] = Piece(shape, replicas, *home, offset=(0,) * len(shape))
            elif info.in_shard:
                elements = (info.intra_param_start_idx, info.intra_param_end_idx + 1)
                found[parameter] = Piece(shape, replicas, *home, elements=elements)
            else:
                found[parameter] = Piece(shape, replicas, *home, elements=(0, 0))
    return found


def _may_disagree(module: nn.Module) -> bool:
    """Tells whether DDP may leave processes with different gradients: through a hook, or parameters that it ignores."""
    if not isinstance(module, nn.parallel.DistributedDataParallel):
        return False
    return bool(module._comm_hooks or module.parameters_to_ignore)
