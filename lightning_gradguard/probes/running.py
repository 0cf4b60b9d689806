"""Normalization by running statistics: whether these have left the zeros and ones that they began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.record import RunningStats

_GONE = 0.5  # of the beginning that is left below which a module is not looked at any more


class RunningStatistics:
    """Looks, on sampled steps, at the modules whose running statistics were zeros and ones when the run began.

    Each batch in training replaces a share of the statistics, ``momentum``, so that ``(1 - momentum)`` to the power of
    the batches is left of the beginning. A module of which less than a half is left is not looked at again: with
    torch's own momentum that is after seven batches.

    Args:
        module: the model.

    Example:
        >>> norm = nn.BatchNorm1d(2, momentum=0.0)
        >>> seen = RunningStatistics(nn.Sequential(norm))
        >>> seen.begin()
        >>> _ = norm(torch.randn(8, 2))
        >>> seen.look({"0": True})
        (RunningStats(module='0', left=1.0, batches=1, training=True),)
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._watched: dict[str, Any] | None = None  # None before the first look

    @torch.no_grad()
    def begin(self) -> None:
        """Finds the modules whose statistics are as torch makes them; of calls after the first one nothing comes."""
        if self._watched is not None:
            return
        parts = dict(_that_follow(self._module))
        made = [(p.running_mean == 0).all() & (p.running_var == 1).all() for p in parts.values()]
        flags = torch.stack([flag.to(made[0].device) for flag in made]).tolist() if made else []  # host sync: once
        self._watched = {name: part for (name, part), flag in zip(parts.items(), flags, strict=True) if flag}

    @torch.no_grad()
    def look(self, flows: Mapping[str, bool]) -> tuple[RunningStats, ...]:
        """How each of them stands, of those that ran.

        Args:
            flows: of each module that was seen to run, whether its output had a gradient to pass on.
        """
        if not self._watched:
            return ()
        counts = [part.num_batches_tracked for part in self._watched.values()]
        home = counts[0].device
        numbers = torch.stack([count.to(home) for count in counts]).tolist()  # host sync: a sampled step
        found = [_stats(name, part, int(n)) for (name, part), n in zip(self._watched.items(), numbers, strict=True)]
        self._watched = {stats.module: self._watched[stats.module] for stats in found if stats.left > _GONE}
        return tuple(stats for stats in found if stats.left > _GONE and flows.get(stats.module))

    def state(self) -> list[str] | None:
        """Names of the modules that are looked at."""
        return None if self._watched is None else list(self._watched)

    def load_state(self, names: Sequence[str] | None) -> None:
        """Goes on from :meth:`state`."""
        if names is not None:
            self._watched = {name: part for name, part in _that_follow(self._module) if name in names}


def _that_follow(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every module with running statistics, by name."""
    for part, name in module_names(module).items():
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
            tensors = (part.running_mean, part.running_var, part.num_batches_tracked)
            if all(type(tensor) is Tensor and not tensor.is_meta for tensor in tensors):
                yield name, part


def _stats(name: str, part: Any, batches: int) -> RunningStats:
    share = part.momentum  # None: the mean of all batches so far
    left = (1.0 - share) ** batches if share is not None else float(batches == 0)
    return RunningStats(name, left, batches, part.training)
