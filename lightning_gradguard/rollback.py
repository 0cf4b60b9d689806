"""Copies of the last good state in memory, put back in place."""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.layout import clean_name
from lightning_gradguard.norms import accumulator
from lightning_gradguard.sharding import is_distributed


class Buffers:
    """The buffers of a module as they were after the last good step.

    A bad batch spoils more than gradients: its forward pass has already updated the running statistics of
    normalization layers, and a NaN there stays for ever although the step is dropped. Buffers that were not finite
    to begin with (an attention mask of -Inf) are never called spoiled.

    Costs the memory of the buffers once more, and one copy of those that may have changed in each good step, by
    one call for all buffers of a dtype.

    Args:
        module: whose buffers; all of them, those outside of the state dict too.
    """

    def __init__(self, module: nn.Module) -> None:
        # Where each buffer hangs, since modules may bind another tensor to the name.
        self._slots = {
            clean_name(f"{path}.{key}" if path else key): (part._buffers, key)
            for path, part in module.named_modules()
            for key, buffer in part._buffers.items()
            if buffer is not None
        }
        self.names = tuple(self._slots)
        self._seen: list[Tensor] | None = None  # the buffers that were looked at last, until they are kept
        self._distributed = any(is_distributed(slot[key]) for slot, key in self._slots.values())
        now = self._now()
        self._watched = [i for i, b in enumerate(now) if b.is_floating_point() and bool(b.isfinite().all())]
        kinds: dict[tuple[torch.device, torch.dtype, bool], list[int]] = defaultdict(list)
        for index, buffer in enumerate(now):
            kinds[buffer.device, buffer.dtype, index in set(self._watched)].append(index)
        self._kinds = [
            _Kind(indices, _way_to_join([now[i] for i in indices]), watched=key[2]) for key, indices in kinds.items()
        ]
        self.keep()

    @torch.no_grad()
    def total(self) -> Tensor | None:
        """Sum over the floating-point buffers, on the device: not finite if one is spoiled; ``None`` without."""
        self._seen = now = self._now()
        sums = [
            flat.sum(dtype=accumulator(flat.dtype)) for kind in self._kinds if kind.watched for flat in [kind.look(now)]
        ]
        if len(sums) <= 1:
            return sums[0] if sums else None
        return torch.stack([each.to(sums[0]) for each in sums]).sum()

    def spoiled(self) -> tuple[str, ...]:
        """Names of the buffers that are not finite now and were at first. Reads the host: for a doubtful step only."""
        now = self._now()
        return tuple(self.names[i] for i in self._watched if not bool(now[i].isfinite().all()))

    @torch.no_grad()
    def keep(self) -> None:
        """Takes the present values as good: those of the last :meth:`total`, if there was one since the last time."""
        now, self._seen = self._seen or self._now(), None
        for kind in self._kinds:
            kind.keep(now)

    @torch.no_grad()
    def restore_(self) -> None:
        """Puts the last good values back."""
        now, kept, self._seen = self._now(), self._kept(), None
        for kind in self._kinds:
            kind.forget()
        fits = [i for i, copy in kept.items() if now[i].shape == copy.shape]
        # Unseen by autograd, as the layers' own updates are: another graph through them (a GAN's generator) may still
        # wait for its backward, which needs the statistics of its batch and not these.
        with torch.autograd.grad_mode._unsafe_preserve_version_counter(tuple(now[i] for i in fits)):
            _copy_all([now[i] for i in fits], [kept[i] for i in fits])

    @torch.no_grad()
    def keep_or_restore_(self, bad: Tensor) -> None:
        """:meth:`restore_` if ``bad``, a boolean of shape ``[]`` on the device, else :meth:`keep`.

        One more copy of all buffers, and no host sync.
        """
        now, self._seen = self._seen or self._now(), None
        for kind in self._kinds:
            kind.settle(now, bad)
        right = self._kept()
        with torch.autograd.grad_mode._unsafe_preserve_version_counter(tuple(now[i] for i in right)):
            _copy_all([now[i] for i in right], list(right.values()))

    def named(self) -> dict[str, Tensor]:
        """The last good values by name."""
        kept = self._kept()
        return {name: kept[index].clone() for index, name in enumerate(self.names)}

    def _kept(self) -> dict[int, Tensor]:
        return {index: copy for kind in self._kinds for index, copy in kind.copies().items()}

    def _now(self) -> list[Tensor]:
        buffers = [slot[key] for slot, key in self._slots.values()]
        return [_local(buffer) for buffer in buffers] if self._distributed else buffers


class _Kind:
    """The buffers of one dtype and device, copied as one: a call for each would cost more than all of the copying."""

    def __init__(self, indices: Sequence[int], join: Callable[[list[Tensor]], Tensor], *, watched: bool) -> None:
        self.indices = indices
        self.watched = watched
        self._join = join
        self._kept = torch.empty(0)
        self._seen: Tensor | None = None
        self._shapes: list[torch.Size] = []  # of what is kept
        self._own: list[Tensor] = []
        self._versions: list[int] = []

    def look(self, buffers: Sequence[Tensor]) -> Tensor:
        own = [buffers[i] for i in self.indices]
        try:
            self._seen = self._join(own)
        except RuntimeError:  # another number of dimensions than before
            self._join = _way_to_join(own)
            self._seen = self._join(own)
        return self._seen

    def forget(self) -> None:
        self._seen = None

    def keep(self, buffers: Sequence[Tensor]) -> None:
        own = [buffers[i] for i in self.indices]
        if not own[0].is_floating_point():
            # Normalization layers write their statistics without counting up the version: it tells only of integers.
            versions = [buffer._version for buffer in own]
            if versions == self._versions and all(map(operator.is_, own, self._own)):
                return
            self._own, self._versions = own, versions
        self._take(self.look(buffers) if self._seen is None else self._seen, own)

    def settle(self, buffers: Sequence[Tensor], bad: Tensor) -> None:
        """Keeps the present values, or the old ones where ``bad``."""
        flat = self.look(buffers) if self._seen is None else self._seen
        if flat.shape == self._kept.shape:
            flat = self._kept.where(bad.to(flat.device), flat)
        self._take(flat, [buffers[i] for i in self.indices])
        self._versions = []

    def _take(self, flat: Tensor, own: Sequence[Tensor]) -> None:
        if flat.shape != self._kept.shape:
            self._shapes = [buffer.shape for buffer in own]
        self._kept, self._seen = flat, None

    def copies(self) -> dict[int, Tensor]:
        parts = self._kept.split([shape.numel() for shape in self._shapes])
        return {i: part.view(shape) for i, part, shape in zip(self.indices, parts, self._shapes, strict=True)}


def _way_to_join(tensors: Sequence[Tensor]) -> Callable[[list[Tensor]], Tensor]:
    dims = {tensor.dim() for tensor in tensors}
    return torch.stack if dims == {0} else torch.cat if dims == {1} else _flatten


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Snapshot:
    """Parameters, buffers and optimizer state at one good step.

    Everything is copied in place, both ways: parameters stay the same objects, and each process keeps its own shards.
    Learning rates and schedulers are left alone, since they are functions of time and time does not go back. The
    random number generators are left alone as well: the same batch order with the same dropout would fail again.

    Memory: with Adam three times the parameters (12 bytes each in float32), beside the buffers.

    Args:
        module: whose buffers to keep.
        optimizers: whose parameters and state to keep; parameters that no optimizer steps do not change.

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

    def __init__(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.step: int | None = None
        self._module = module
        self._optimizers = list(optimizers)
        self._params: dict[Tensor, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._states: list[dict[Tensor, dict[str, Any]]] = [{} for _ in optimizers]

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Copies the present state; the first time the memory is taken, later it is written over."""
        params = [parameter for o in self._optimizers for group in o.param_groups for parameter in group["params"]]
        self._params = {p: _like(self._params.get(p), _local(p)) for p in params}
        _copy_all(list(self._params.values()), [_local(p) for p in self._params])
        buffers = dict(self._module.named_buffers())
        self._buffers = {name: _like(self._buffers.get(name), _local(buffer)) for name, buffer in buffers.items()}
        _copy_all(list(self._buffers.values()), [_local(buffer) for buffer in buffers.values()])
        self._states = [
            {parameter: _copy_state(state, kept.get(parameter, {})) for parameter, state in optimizer.state.items()}
            for optimizer, kept in zip(self._optimizers, self._states, strict=True)
        ]
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
        buffers = {name: buffer for name, buffer in self._module.named_buffers() if name in self._buffers}
        _copy_all([_local(buffer) for buffer in buffers.values()], [self._buffers[name] for name in buffers])
        for optimizer, kept in zip(self._optimizers, self._states, strict=True):
            for parameter in list(optimizer.state):
                if parameter in kept:
                    _restore_state(optimizer.state[parameter], kept[parameter])
                else:
                    del optimizer.state[parameter]

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        states = [value for one in self._states for state in one.values() for value in state.values()]
        tensors = [*self._params.values(), *self._buffers.values(), *(v for v in states if isinstance(v, Tensor))]
        return sum(tensor.nbytes for tensor in tensors)


def _local(tensor: Tensor) -> Tensor:
    """The memory of this process behind a distributed tensor; the tensor itself otherwise."""
    to_local = getattr(tensor, "to_local", None)
    return (to_local() if to_local is not None else tensor).detach()


def _like(kept: Tensor | None, tensor: Tensor) -> Tensor:
    return kept if kept is not None and kept.shape == tensor.shape else torch.empty_like(tensor)


def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def _copy_state(state: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """A copy of one parameter's optimizer state, in the memory of the last copy where that fits."""
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
