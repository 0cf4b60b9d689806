"""Copies of the last good state in memory, put back in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.guard.buffers import _copy_all, _local

SCHEDULED = frozenset(
    {"lr", "initial_lr", "min_lr", "max_lr", "swa_lr", "weight_decay"}
    | {"momentum", "base_momentum", "max_momentum", "betas"}
)


class Snapshot:
    """Parameters, buffers and optimizer state at one good step.

    Everything is copied in place, both ways: parameters stay the same objects, and each process keeps its own shards.
    Numbers that optimizers keep in ``param_groups`` (steps, running averages) belong to their state. What schedulers
    write there (learning rates, momentum, weight decay) is left alone: functions of time, and time does not go back.
    The random number generators are left alone as well: the same batch order with the same dropout would fail again.

    Memory: with Adam three times the parameters (12 bytes each in float32), beside the buffers.

    Args:
        module: whose buffers to keep.
        optimizers: whose parameters and state to keep; parameters that no optimizer steps do not change.

        averages: averaged models kept beside it, whose memory is taken once more.

    Attributes:
        step: at which the snapshot was taken; ``None`` before the first.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> snapshot = Snapshot(net, [torch.optim.Adam(net.parameters())])
        >>> snapshot.take(step=0)
        >>> _ = nn.init.constant_(net.weight, float("nan"))
        >>> snapshot.restore_()
        >>> bool(net.weight.isfinite().all())
        True
    """

    def __init__(
        self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], averages: Sequence[nn.Module] = ()
    ) -> None:
        self.step: int | None = None
        self._module = module
        self._averages = list(averages)
        self._optimizers = list(optimizers)
        self._params: dict[Tensor, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._states: list[dict[Any, dict[str, Any]]] = [{} for _ in optimizers]
        self._numbers: list[list[dict[str, Any]]] = []

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Copies the present state; the first time the memory is taken, later it is written over."""
        params = [parameter for o in self._optimizers for group in o.param_groups for parameter in group["params"]]
        self._params = {p: _like(self._params.get(p), _local(p)) for p in params}
        _copy_all(list(self._params.values()), [_local(p) for p in self._params])
        buffers = self._beside_parameters()
        self._buffers = {name: _like(self._buffers.get(name), _local(buffer)) for name, buffer in buffers.items()}
        _copy_all(list(self._buffers.values()), [_local(buffer) for buffer in buffers.values()])
        self._states = [
            {key: _copy_state(_entries(state), kept.get(key, {})) for key, state in optimizer.state.items()}
            for optimizer, kept in zip(self._optimizers, self._states, strict=True)
        ]
        self._numbers = [[_copy_state(_numbers(group), {}) for group in o.param_groups] for o in self._optimizers]
        self.step = step

    @torch.no_grad()
    def restore_(self) -> None:
        """Puts the snapshot back; state that an optimizer did not have then is forgotten.

        Raises:
            RuntimeError: if none was taken.
        """
        if self.step is None:
            raise RuntimeError("there is no snapshot to go back to: take() was never called")
        _copy_all([_local(p) for p in self._params], list(self._params.values()))
        buffers = {name: buffer for name, buffer in self._beside_parameters().items() if name in self._buffers}
        _copy_all([_local(buffer) for buffer in buffers.values()], [self._buffers[name] for name in buffers])
        for optimizer, kept in zip(self._optimizers, self._states, strict=True):
            for key in list(optimizer.state):
                if key not in kept:
                    del optimizer.state[key]
                elif isinstance(optimizer.state[key], dict):
                    _restore_state(optimizer.state[key], kept[key])
                else:
                    optimizer.state[key] = copy.deepcopy(kept[key][_ITSELF])
        for optimizer, numbers in zip(self._optimizers, self._numbers, strict=True):
            for group, of_group in zip(optimizer.param_groups, numbers, strict=False):
                present = _numbers(group)
                _restore_state(present, of_group)
                for later in _numbers(group).keys() - present.keys():
                    del group[later]
                group.update(present)

    def _beside_parameters(self) -> dict[str, Tensor]:
        """The buffers of the module, and all tensors of the averages."""
        found = dict(self._module.named_buffers())
        for index, average in enumerate(self._averages):
            own = [*average.named_parameters(), *average.named_buffers()]
            found.update({f"average {index}: {name}": tensor for name, tensor in own})
        return found

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        states = [value for one in self._states for state in one.values() for value in state.values()]
        tensors = [*self._params.values(), *self._buffers.values(), *(v for v in states if isinstance(v, Tensor))]
        return sum(tensor.nbytes for tensor in tensors)


_ITSELF = "itself"  # where a state is one value for the whole optimizer, and not a dict for one parameter


def _entries(state: Any) -> dict[str, Any]:
    return state if isinstance(state, dict) else {_ITSELF: state}


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group that no scheduler writes."""
    return {key: value for key, value in group.items() if key not in SCHEDULED and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _like(kept: Tensor | None, tensor: Tensor) -> Tensor:
    return kept if kept is not None and kept.shape == tensor.shape else torch.empty_like(tensor)


def _copy_state(state: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of one parameter's optimizer state, in the memory of the last copy where that fits."""
    copied: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            memory = kept.get(key)
            copied[key] = _like(memory if isinstance(memory, Tensor) else None, _local(value)).copy_(_local(value))
        else:
            copied[key] = copy.deepcopy(value)
    return copied


def _restore_state(state: dict[str, Any], kept: dict[str, Any]) -> None:
    for key in state.keys() - kept.keys():
        del state[key]
    for key, value in kept.items():
        present = state.get(key)
        if isinstance(value, Tensor) and isinstance(present, Tensor) and _local(present).shape == value.shape:
            _local(present).copy_(value)
        else:
            state[key] = copy.deepcopy(value)
