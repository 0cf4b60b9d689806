"""What one process holds of the parameters: all of them, or pieces whose norms the processes put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter, is_not
from typing import Any, final

import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradguard.measurement.needs import Found, Needs
from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.unit_norms import UnitNorms, units_of_whole_tensors

Tensors = Sequence[Tensor | None]
Params = Sequence[nn.Parameter]

_GRAD = attrgetter("grad")


class Sharding(ABC):
    """How the parameters of one optimizer are spread over processes.

    Whoever measures asks this object and need not know: where every process has whole tensors, each answer is what went
    in (:class:`Whole`); where it has pieces, the processes put theirs together
    (:class:`~lightning_gradguard.measurement.sharded.Sharded`). Every process calls the methods in the same order and
    gets the same answer, bit for bit, so that every decision made from it is the same, too.
    """

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Tells whether every process has all parameters whole."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Sharding:
        """Returns the sharding of some of the parameters, by index."""

    @abstractmethod
    def shapes(self, params: Params) -> tuple[tuple[int, ...], ...]:
        """Returns the shape of each whole parameter."""

    @abstractmethod
    def gradients(self, params: Params) -> list[Tensor | None]:
        """Returns what this process holds of each gradient; ``None`` where there is none."""

    @abstractmethod
    def values(self, params: Params) -> Sequence[Tensor]:
        """Returns what this process holds of each parameter, to be read without autograd."""

    @abstractmethod
    def present(self, params: Params, grads: Tensors) -> tuple[bool, ...]:
        """Returns for each parameter whether it has a gradient; the same on every process."""

    @abstractmethod
    def has_gradients(self, params: Params) -> bool:
        """Returns whether there is a gradient anywhere; the same on every process."""

    @abstractmethod
    def sum(self, local: Tensor) -> Tensor:
        """Sums numbers over the pieces of each parameter, ``[num_params, ...]``; replicas count once."""

    @abstractmethod
    def norms(self, local: Tensor, p: float = 2.0) -> Tensor:
        """Returns the lp norms of whole tensors, ``[num_params]``, given those of what this process holds."""

    @abstractmethod
    def largest(self, local: Tensor) -> Tensor:
        """Returns the largest number over all processes, elementwise, any shape."""

    @abstractmethod
    def any(self, local: Tensor) -> Tensor:
        """Returns whether a boolean is true on any process, elementwise, any shape."""

    @abstractmethod
    def measure(self, grads: Tensors, norms: Norms, needs: Needs) -> tuple[Tensor, Found]:
        """Returns the norms of whole gradients, and what the same pass found of the units that policies need.

        Args:
            grads: what this process holds of each gradient.
            norms: measures these at each step where nothing else is needed.
            needs: what else policies need.
        """

    @abstractmethod
    def by_unit(self, needs: Needs, grads: Tensors, params: Params, found: Found) -> list[UnitNorms]:
        """Returns the norms of the units that one policy needs, of gradients and of weights.

        Args:
            needs: of one policy.
            grads: what this process holds of each gradient.
            params: the parameters that they are gradients of.
            found: what the pass over the gradients found of units; these may be among them.
        """


@final
class Whole(Sharding):
    """Every process holds all tensors whole: nothing has to be put together, and nobody waits for another process."""

    @property
    def whole(self) -> bool:
        """Tells that they are whole."""
        return True

    def subset(self, indices: Sequence[int]) -> Whole:
        """Returns itself."""
        return self

    def shapes(self, params: Params) -> tuple[tuple[int, ...], ...]:
        """Returns their shapes."""
        return tuple([tuple(parameter.shape) for parameter in params])

    def gradients(self, params: Params) -> list[Tensor | None]:
        """Returns their gradients."""
        return list(map(_GRAD, params))

    def values(self, params: Params) -> Sequence[Tensor]:
        """Returns the parameters themselves: detaching each would cost more than measuring it."""
        return params

    def present(self, params: Params, grads: Tensors) -> tuple[bool, ...]:
        """Returns which gradients are there."""
        return tuple(map(is_not, grads, repeat(None)))

    def has_gradients(self, params: Params) -> bool:
        """Returns whether one is there."""
        return any(map(is_not, map(_GRAD, params), repeat(None)))

    def sum(self, local: Tensor) -> Tensor:
        """Returns what it gets."""
        return local

    def norms(self, local: Tensor, p: float = 2.0) -> Tensor:
        """Returns what it gets."""
        return local

    def largest(self, local: Tensor) -> Tensor:
        """Returns what it gets."""
        return local

    def any(self, local: Tensor) -> Tensor:
        """Returns what it gets."""
        return local

    def measure(self, grads: Tensors, norms: Norms, needs: Needs) -> tuple[Tensor, Found]:
        """Measures tensors and units in one pass."""
        # Policies that go by units get them from the read that the norms need anyway.
        if not needs.leaves:
            return norms(grads), {}
        whole, units = needs.norms_of_gradients.with_units(grads)
        return whole, dict(zip(needs.leaves, units, strict=True))

    def by_unit(self, needs: Needs, grads: Tensors, params: Params, found: Found) -> list[UnitNorms]:
        """Returns what was found, or else reads the gradients once more."""
        # Copies of gradients, which a chain clips, were in no pass: they are measured here.
        return units_of_whole_tensors(needs, grads, params, found.get(needs) or needs.units_of_copies.of_units(grads))


def num_processes() -> int:
    """Tells how many processes train together; 1 where nothing is distributed.

    Example:
        >>> num_processes()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed(tensor: Tensor) -> bool:
    """Tells whether a tensor is a ``DTensor``, by what it has: importing the class takes a second."""
    return hasattr(tensor, "device_mesh")


def is_flat(tensor: Tensor) -> bool:
    """Tells whether FSDP has flattened several parameters into this one (``use_orig_params=False``)."""
    return bool(getattr(tensor, "_is_flat_param", False))


def local(tensor: Tensor) -> Tensor:
    """Returns what this process holds of a tensor, detached: the piece of a ``DTensor``, any other tensor as it is."""
    # Detached first: taking the piece of a tensor with a graph would be recorded in it.
    detached: Any = tensor.detach()
    piece: Tensor = detached.to_local() if is_distributed(detached) else detached
    return piece
