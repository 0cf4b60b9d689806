"""Parameters spread over processes: the norms of whole tensors from local pieces, with one all-reduce."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradguard.measurement.needs import Found, Needs
from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.pieces import Piece, find_pieces
from lightning_gradguard.measurement.sharded_units import units_of_pieces
from lightning_gradguard.measurement.sharding import (
    Params,
    Sharding,
    Tensors,
    Whole,
    is_distributed,
    local,
    num_processes,
)
from lightning_gradguard.measurement.unit_norms import UnitNorms


def find_sharding(module: nn.Module, parameters: Params) -> Sharding:
    """Tells how parameters are sharded; :class:`Whole` where each process holds, and applies, whole equal gradients.

    Args:
        module: the outermost wrapper (FSDP, DDP) or the plain module.
        parameters: those of one optimizer.
    """
    if num_processes() == 1:
        return Whole()
    pieces, flat = find_pieces(module, parameters)
    # Without its wrapper a slice looks like a small parameter: norms would be wrong without a word.
    if not flat and any(getattr(parameter, "_fsdp_flattened", False) for parameter in parameters):
        raise ValueError(
            f"module: the parameters of this {type(module).__name__} are slices that an FSDP wrapper around it has "
            "made, and the wrapper alone knows of which tensors: each process would clip by the norm of its own "
            "slices. Pass the wrapper, FSDP(...), instead of what is in it"
        )
    return Sharded(pieces, flat) if pieces else Whole()


@final
@dataclass(frozen=True, eq=False)
class Sharded(Sharding):
    """Each process of the default group knows a piece of each tensor.

    Every process runs the same code (SPMD): it holds the same list of parameters, a piece of each, and calls the
    methods here in the same order.

    Attributes:
        pieces: for each parameter what this process holds of it. Each of several replicas counts for one part in so
            many; where "replicas" differ after all (a communication hook that does not average), squares and counts
            are averaged over them.
        flat: whether pieces are slices of a flattened group of parameters (FSDP1): then a process may hold nothing
            of a parameter, and no gradient for it, whereas others do.
    """

    pieces: tuple[Piece, ...]
    flat: bool = False

    @property
    def whole(self) -> bool:
        """Tells that parameters are in pieces."""
        return False

    def subset(self, indices: Sequence[int]) -> Sharded:
        """Returns the sharding of some of the parameters, by index."""
        return replace(self, pieces=tuple(self.pieces[i] for i in indices))

    def shapes(self, params: Params) -> tuple[tuple[int, ...], ...]:
        """Returns the shape of each whole parameter."""
        return tuple([piece.shape for piece in self.pieces])

    def gradients(self, params: Params) -> list[Tensor | None]:
        """Returns the local piece of each gradient."""
        return [_local_gradient(parameter) for parameter in params]

    def values(self, params: Params) -> Sequence[Tensor]:
        """Returns the local piece of each parameter, detached."""
        return [local(parameter) for parameter in params]

    def present(self, params: Params, grads: Tensors) -> tuple[bool, ...]:
        """Returns which have a gradient; slices do not tell, so there every parameter that is trained counts."""
        if self.flat:
            return tuple([parameter.requires_grad for parameter in params])
        return tuple([grad is not None for grad in grads])

    def has_gradients(self, params: Params) -> bool:
        """Returns whether one is there; this process may hold nothing of what others have a gradient for."""
        return self.flat or any(parameter.grad is not None for parameter in params)

    def sum(self, local: Tensor) -> Tensor:
        """Sums over the pieces, replicas counted once: ``[num_params, ...]``, in float64 where the device has it."""
        # Each of n replicas gives an n-th, so that the sum over all processes counts their piece once.
        wide = local.float() if local.device.type == "mps" else local.double()
        total = wide / self._replicas(wide).view(-1, *[1] * (wide.dim() - 1))
        dist.all_reduce(total)
        return total

    def sum_each(self, vectors: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Sums several vectors over the pieces, replicas counted once, in one all-reduce.

        Args:
            vectors: of whatever length, each with the index of the parameter that it is about.
        """
        if not vectors:
            return []
        # One all-reduce for all of them: its latency is the cost, not its length.
        together = torch.cat([vector / self.pieces[index].replicas for index, vector in vectors])
        dist.all_reduce(together)
        return list(together.split([vector.numel() for _, vector in vectors]))

    def norms(self, local: Tensor, p: float = 2.0) -> Tensor:
        """Lp norms of whole tensors from those of their pieces, ``[num_params]``: (sum n^p)^(1/p), or the largest.

        They come where the parameters live, in float64 if one of these is, else in the dtype that they came in.
        """
        # A process that holds nothing still takes part, with the device and dtype that all agree on.
        here = local.to(self._device, torch.promote_types(local.dtype, self._dtype))
        if math.isinf(p):
            return self.largest(here)
        wide = here if here.device.type == "mps" else here.double()  # squares of 1e30 overflow float32
        return (self.sum(wide**p) ** (1.0 / p)).to(here.dtype)

    def largest(self, local: Tensor) -> Tensor:
        """Returns the largest over the pieces, elementwise, any shape."""
        values = local.clone()
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def any(self, local: Tensor) -> Tensor:
        """Tells whether a boolean is true on any process, any shape."""
        return self.largest(local.to(torch.uint8)).bool()

    def measure(self, grads: Tensors, norms: Norms, needs: Needs) -> tuple[Tensor, Found]:
        """Returns the norms of whole gradients; units wait until a policy asks for them."""
        return self.norms(norms(grads)), {}

    def by_unit(self, needs: Needs, grads: Tensors, params: Params, found: Found) -> list[UnitNorms]:
        """Measures the units of gradients and weights whose elements lie on several processes, in one all-reduce."""
        return units_of_pieces(needs, grads, self.values(params), self.pieces, self.sum_each)

    # A process without pieces would know neither device nor dtype from its gradients.

    @property
    def _device(self) -> torch.device:
        return self.pieces[0].device

    @functools.cached_property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if torch.float64 in [piece.dtype for piece in self.pieces] else torch.float32

    def _replicas(self, like: Tensor) -> Tensor:
        cache: dict[torch.device, Tensor] = self.__dict__.setdefault("_counts", {})
        if like.device not in cache:
            counts = [piece.replicas for piece in self.pieces]
            cache[like.device] = torch.tensor(counts, device=like.device, dtype=like.dtype)
        return cache[like.device]


def _local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """Returns the local piece of a parameter's gradient, to be written through.

    A gradient laid out differently from its parameter (partial sums, as sequence parallelism leaves them) is brought
    into the parameter's layout first, which the optimizer would do otherwise.
    """
    grad: Any = parameter.grad
    if grad is None or not is_distributed(grad):
        return grad
    placements: Any = getattr(parameter, "placements", None)
    if placements is not None and grad.placements != placements:
        grad = parameter.grad = grad.redistribute(placements=placements)
    return local(grad)
