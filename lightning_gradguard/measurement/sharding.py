"""Parameters spread over processes: the norms of whole tensors from local pieces, with one all-reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """What this process holds of one parameter.

    Attributes:
        shape: of the whole parameter.
        replicas: how many processes hold the same piece.
        offset: where the piece begins in each dimension of the whole.
        elements: for a slice of the flattened whole (FSDP1), which elements it has, as begin and end; else ``None``.
    """

    shape: tuple[int, ...]
    replicas: int
    offset: tuple[int, ...] = ()
    elements: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Sharding:
    """How the parameters of one optimizer are spread over the processes of the default group.

    Each process knows a piece of each tensor; norms are those of the whole. Every process runs the same code (SPMD):
    it holds the same list of parameters, a piece of each, and calls the methods here in the same order. What they
    return is the same on every process, bit for bit, so that every decision made from it is, too.

    Attributes:
        pieces: for each parameter what this process holds of it. Each of several replicas counts for one part in so
            many; where "replicas" differ after all (a communication hook that does not average), squares and counts
            are averaged over them.
        flat: whether pieces are slices of a flattened group of parameters (FSDP1): then a process may hold nothing
            of a parameter, and no gradient for it, whereas others do.
    """

    pieces: tuple[Piece, ...]
    flat: bool = False

    def subset(self, indices: Sequence[int]) -> Sharding:
        """The sharding of some of the parameters, by index."""
        return replace(self, pieces=tuple(self.pieces[i] for i in indices))

    def sum(self, local: Tensor) -> Tensor:
        """Sums over the pieces, replicas counted once: ``[num_params, ...]``, in float64 where the device has it."""
        wide = local.float() if local.device.type == "mps" else local.double()
        total = wide / self._replicas(wide).view(-1, *[1] * (wide.dim() - 1))
        dist.all_reduce(total)
        return total

    def sum_each(self, locals_: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Sums several vectors over the pieces, replicas counted once, in one all-reduce.

        Args:
            locals_: vectors of whatever length, each with the index of the parameter that it is about.
        """
        if not locals_:
            return []
        together = torch.cat([vector / self.pieces[index].replicas for index, vector in locals_])
        dist.all_reduce(together)
        return list(together.split([vector.numel() for _, vector in locals_]))

    def norms(self, local: Tensor, p: float = 2.0) -> Tensor:
        """Lp norms of whole tensors from those of their pieces, ``[num_params]``: (sum n^p)^(1/p), or the largest."""
        if math.isinf(p):
            return self.largest(local)
        wide = local if local.device.type == "mps" else local.double()  # squares of 1e30 overflow float32
        return (self.sum(wide**p) ** (1.0 / p)).to(local.dtype)

    def largest(self, local: Tensor) -> Tensor:
        """The largest over the pieces, elementwise, any shape."""
        values = local.clone()
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def any(self, local: Tensor) -> Tensor:
        """Whether a boolean is true on any process, any shape."""
        return self.largest(local.to(torch.uint8)).bool()

    def _replicas(self, like: Tensor) -> Tensor:
        cache: dict[torch.device, Tensor] = self.__dict__.setdefault("_counts", {})
        if like.device not in cache:
            counts = [piece.replicas for piece in self.pieces]
            cache[like.device] = torch.tensor(counts, device=like.device, dtype=like.dtype)
        return cache[like.device]


def find_sharding(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Sharding | None:
    """Tells how parameters are sharded; ``None`` where each process holds, and applies, whole equal gradients.

    Args:
        module: the outermost wrapper (FSDP, DDP) or the plain module.
        parameters: those of one optimizer.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    world = dist.get_world_size()
    if any(is_distributed(parameter) for parameter in parameters):
        return Sharding(tuple(_piece(parameter, world) for parameter in parameters))
    flat = _flat_pieces(module, world)
    if flat:
        return Sharding(tuple(flat.get(p) or _piece(p, world) for p in parameters), flat=True)
    if any(_may_disagree(m) for m in module.modules()):
        return Sharding(tuple(_piece(parameter, world) for parameter in parameters))
    return None


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``; asked of the object, since importing the class takes a second."""
    return hasattr(tensor, "device_mesh")


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The local piece of a parameter's gradient.

    A gradient laid out differently from its parameter (partial sums, as sequence parallelism leaves them) is brought
    into the parameter's layout first, which the optimizer would do otherwise.
    """
    grad: Any = parameter.grad
    if grad is None or not is_distributed(grad):
        return grad
    if is_distributed(parameter) and grad.placements != parameter.placements:  # type: ignore[attr-defined]
        grad = parameter.grad = grad.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
    local: Tensor = grad.to_local()
    return local


def local_values(parameter: Tensor) -> Tensor:
    """The local piece of a parameter, detached."""
    detached: Any = parameter.detach()
    piece: Tensor = detached.to_local() if is_distributed(detached) else detached
    return piece


def _piece(parameter: Any, world: int) -> Piece:
    shape = tuple(parameter.shape)
    if not is_distributed(parameter):
        return Piece(shape, world, (0,) * len(shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = parameter.device_mesh, parameter.placements
    whole = (mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_replicate())
    _, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Piece(shape, math.prod(whole) * (world // mesh.size()), tuple(offset))


def _flat_pieces(module: nn.Module, world: int) -> dict[nn.Parameter, Piece]:
    """What this process holds of the parameters under FSDP1; empty where there is none."""
    found: dict[nn.Parameter, Piece] = {}
    for wrapper in module.modules():
        handle = getattr(wrapper, "_handle", None)
        flat: Any = getattr(handle, "flat_param", None)
        if handle is None or flat is None:
            continue
        replicas = world // handle.process_group.size() if handle.uses_sharded_strategy else world
        if flat._params is None:  # use_orig_params=False: one parameter, all layers in it
            found[flat] = Piece(tuple(flat._unpadded_unsharded_size), replicas, elements=(0, 0))
            continue
        for parameter, shape, info in zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True):
            if not handle.uses_sharded_strategy:
                found[parameter] = Piece(tuple(shape), replicas, (0,) * len(shape))
            elif info.in_shard:
                found[parameter] = Piece(
                    tuple(shape), replicas, elements=(info.intra_param_start_idx, info.intra_param_end_idx + 1)
                )
            else:
                found[parameter] = Piece(tuple(shape), replicas, elements=(0, 0))
    return found


def _may_disagree(module: nn.Module) -> bool:
    """Whether DDP may leave processes with different gradients: through a hook, or parameters that it ignores."""
    if not isinstance(module, nn.parallel.DistributedDataParallel):
        return False
    return bool(module._comm_hooks or module.parameters_to_ignore)


def any_process(flag: bool, params: Sequence[Tensor]) -> bool:
    """Whether a flag is set on any process; every process must ask."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flag
    votes = torch.tensor(float(flag), device=local_values(params[0]).device if params else None)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)
