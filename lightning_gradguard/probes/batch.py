"""What the tensors of a batch look like, on sampled steps: scale, spread over features, whether samples differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.record import BatchStats

_MOST = 8  # tensors of a batch that are looked at


class BatchProbe:
    """Looks at the first tensors of a batch; what it saw stays on the device until a record asks.

    Example:
        >>> probe = BatchProbe()
        >>> probe.look((torch.tensor([[3.0, 3.0], [3.0, 3.0]]), ["a", "b"]))
        >>> probe.take()
        (BatchStats(name='0', rms=3.0, spread=1.0, varies=False, floating=True),)
    """

    def __init__(self) -> None:
        self._seen: list[tuple[str, bool, Tensor]] = []

    @torch.no_grad()
    def look(self, batch: Any) -> None:
        """Takes in a batch."""
        self._seen = [
            (name, tensor.is_floating_point(), _figures(tensor))
            for name, tensor in _tensors(batch, "", 0)
            if type(tensor) is Tensor and tensor.layout == torch.strided and tensor.dim() > 0 and tensor.numel() > 0
        ][:_MOST]

    def take(self) -> tuple[BatchStats, ...] | None:
        """What the last batch looked like; ``None`` without a new one."""
        seen, self._seen = self._seen, []
        found = []
        for name, floating, figures in seen:
            rms, spread, varies = figures.tolist()  # host sync: a sampled step
            found.append(BatchStats(name, rms, spread, bool(varies), floating))
        return tuple(found) or None


def _figures(tensor: Tensor) -> Tensor:
    varies = (tensor != tensor[:1]).any() if len(tensor) > 1 else torch.ones((), device=tensor.device)
    values = tensor.float() if not tensor.is_complex() else tensor.abs().float()
    squares = values.square()
    spread = torch.ones((), device=tensor.device)
    features = {2: 1, 3: 2, 4: 1, 5: 1}.get(tensor.dim())
    if features is not None and tensor.shape[features] > 1 and tensor.is_floating_point():
        others = [dim for dim in range(tensor.dim()) if dim != features]
        each = squares.mean(others).sqrt()
        each = each[each > 0] if bool((each > 0).any()) else each.new_ones(1)  # host sync: a sampled step
        spread = each.amax() / each.median()
    return torch.stack([squares.mean().sqrt(), spread, varies.to(spread)])


def _tensors(batch: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield name or "batch", batch
    elif depth < 4 and isinstance(batch, Mapping):
        for key, value in list(batch.items())[:_MOST]:
            yield from _tensors(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif depth < 4 and isinstance(batch, list | tuple):
        for index, value in enumerate(batch[:_MOST]):
            yield from _tensors(value, f"{name}.{index}" if name else str(index), depth + 1)
