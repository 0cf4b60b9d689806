"""The buffers of a module as they were after the last good step."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.names import join, module_names
from lightning_gradguard.measurement.sharding import is_distributed
from lightning_gradguard.measurement.tensors import accumulator


class Buffers:
    """The buffers of a module as they were after the last good step.

    A bad batch spoils more than gradients: its forward pass has already updated the running statistics of
    normalization layers, and a NaN there stays for ever although the step is dropped. Buffers that were not finite
    to begin with (an attention mask of -Inf) are never called spoiled.

    Costs the memory of the buffers once more, and one copy of those that may have changed in each good step, by
    one call for all buffers of a dtype.

    Args:
        module: whose buffers; all of them, those outside of the state dict too.

    Attributes:
        unwatched: names of those that were not finite to begin with.
    """

    def __init__(self, module: nn.Module) -> None:
        # Where each buffer hangs, since modules may bind another tensor to the name.
        self._slots: dict[str, tuple[dict[str, Any], str]] = {
            join(name, key): (part._buffers, key)
            for part, name in module_names(module).items()
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
        watched = set(self._watched)
        self.unwatched = {n for i, n in enumerate(self.names) if i not in watched and now[i].is_floating_point()}
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

    def not_finite(self) -> tuple[str, ...]:
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
        """Returns the last good values by name."""
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
        self._kept = torch.empty(0, device="cpu")
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


def _local(tensor: Tensor) -> Tensor:
    """Returns the memory of this process behind a distributed tensor; the tensor itself otherwise."""
    to_local = getattr(tensor, "to_local", None)
    return (to_local() if to_local is not None else tensor).detach()


def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(list(targets), list(sources))
