"""A ceiling for each unit's gradient, relative to the unit's weights."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_gradguard.clip.arguments import patterns, positive
from lightning_gradguard.clip.base import Clip, ClipPolicy, State, norm_coefficient
from lightning_gradguard.clip.sharded_units import measure_sharded_units
from lightning_gradguard.clip.units import Units, units_of
from lightning_gradguard.layout import Layout
from lightning_gradguard.measure import Measurement

# Units of small parameters of one shape are measured together: dispatch costs more than the copy.
_STACK_NUMEL = 4096


@final
class AGC(ClipPolicy):
    """Keeps each unit's gradient small beside the unit's weights (adaptive gradient clipping of the NFNets).

    limit_i = ratio * max(||W_i||, eps);  G_i <- G_i * min(1, limit_i / ||G_i||)

    A unit i is what feeds one output: a row of a linear, convolution, embedding, attention or recurrent weight, a
    column of a transposed convolution; a bias or gain is one unit. See
    :func:`~lightning_gradguard.clip.units.units_of`. The direction turns, since units are scaled apart.

    Choose it for networks without normalization, or where layers differ much in scale. It bounds the relative change
    of weights under plain SGD; under Adam or Lion, which normalize themselves, it does little.

    Args:
        ratio: of gradient to weight norm at which a unit is clipped, > 0: the paper's 0.01 at batch size 4096, more
            for smaller batches (up to 0.16 at 256).
        eps: least weight norm to count with, > 0, so that weights which start at zero can train: the paper's 1e-3.
        exclude: names of parameters to leave alone, as shell patterns: ``["head.*", "*.bias"]``. The paper leaves out
            the final linear layer. Names, not positions: reordering a model changes nothing.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.

    Example:
        >>> AGC(ratio=0.02, exclude=["head.*"]).exclude
        ('head.*',)

    Reference: Brock et al. 2021, arXiv:2102.06171.
    """

    def __init__(self, ratio: float = 0.01, eps: float = 1e-3, exclude: Sequence[str] | None = None) -> None:
        self.ratio = positive("ratio", ratio, "the paper's is 0.01")
        self.eps = positive("eps", eps, "the paper's is 1e-3; with 0, weights that start at zero could never train")
        self.exclude = patterns("exclude", exclude)

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """Nothing to remember: the weights are the history."""
        return {}

    def check(self, layout: Layout) -> None:
        """Warns if every parameter is excluded, or if a pattern excludes none."""
        if layout.names and not _groups(layout, self.exclude):
            warnings.warn(f"AGC clips nothing: exclude={list(self.exclude)} covers every parameter", stacklevel=2)
            return
        unused = [pattern for pattern in self.exclude if not any(fnmatchcase(name, pattern) for name in layout.names)]
        if unused:
            names = f"they are called {layout.names[0]!r}, ..."
            warnings.warn(f"AGC: exclude={unused} matches no parameter of this optimizer; {names}", stacklevel=2)

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Compares the gradient of each unit with its weights."""
        if measurement.layout.sharding is not None:
            return self._decide_sharded(measurement)
        by_device = defaultdict(list)
        for piece in _measure_units(measurement, _groups(measurement.layout, self.exclude)):
            by_device[piece.grads.device].append(piece)
        answer: list[Tensor | None] = [None] * len(measurement.grads)
        changes = []
        for pieces in by_device.values():  # one vector of all units, for the arithmetic
            grads, weights = torch.cat([p.grads for p in pieces]), torch.cat([p.weights for p in pieces])
            factors = norm_coefficient(grads, weights.clamp(min=self.eps) * self.ratio)
            changes.append((factors < 1.0).any().to(measurement.total.device, non_blocking=True))
            for piece, part in zip(pieces, factors.split([p.grads.numel() for p in pieces]), strict=True):
                each = piece.units.spread(part, piece.shape, len(piece.indices))
                for index, factor in zip(piece.indices, each, strict=True):
                    answer[index] = factor
        if len(changes) > 1:
            changes = [torch.stack(changes).any()]
        return Clip(units=answer, changes=changes[0] if changes else None)

    def _decide_sharded(self, measurement: Measurement) -> Clip:
        """The same where a unit's elements may lie on several processes."""
        layout = measurement.layout
        wanted = [i for i, name in enumerate(layout.names) if not _is_excluded(name, self.exclude)]
        answer: list[Tensor | None] = [None] * len(measurement.grads)
        changes = measurement.total.new_zeros((), dtype=torch.bool)
        for seen in measure_sharded_units(layout, units_of(layout), wanted, measurement.grads):
            factors = norm_coefficient(seen.grads, seen.weights.clamp(min=self.eps) * self.ratio)
            changes = changes | (factors < 1.0).any()
            answer[seen.index] = factors[seen.unit_of]
        return Clip(units=answer, changes=changes)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Norms of all units of some parameters of one shape, one after the other: of gradients and of weights."""

    indices: Sequence[int]
    units: Units
    shape: torch.Size
    grads: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class _Group:
    """Parameters of one shape, dtype and device; small ones are measured in one stack."""

    indices: list[int]
    units: Units
    shape: torch.Size
    on_device: Tensor


_groups_of: WeakKeyDictionary[Layout, dict[tuple[str, ...], list[_Group]]] = WeakKeyDictionary()


def _groups(layout: Layout, exclude: tuple[str, ...]) -> list[_Group]:
    """What of a layout is clipped; found once for each layout."""
    known = _groups_of.setdefault(layout, {})
    if exclude not in known:
        found = defaultdict(list)
        for index, (units, name, parameter) in enumerate(
            zip(units_of(layout), layout.names, layout.params, strict=True)
        ):
            if not _is_excluded(name, exclude):
                alone = index if parameter.numel() > _STACK_NUMEL else None
                found[parameter.device, parameter.dtype, parameter.shape, units, alone].append(index)
        known[exclude] = [
            _Group(indices, units, shape, torch.tensor(indices, device=device))
            for (device, _, shape, units, _), indices in found.items()
        ]
    return known[exclude]


def _is_excluded(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _measure_units(measurement: Measurement, groups: Sequence[_Group]) -> Iterator[_Piece]:
    grads, layout = measurement.grads, measurement.layout
    for group in groups:
        units, shape = group.units, group.shape
        weights: list[Tensor] = [layout.params[i] for i in group.indices]
        if units.whole:  # its norm is known; without a gradient it is zero, and the factor is not used
            yield _Piece(group.indices, units, shape, measurement.norms[group.on_device], _norms(units, weights))
            continue
        own = [grad for i in group.indices if (grad := grads[i]) is not None and grad.layout == torch.strided]
        if len(own) == len(weights):
            yield _Piece(group.indices, units, shape, _norms(units, own), _norms(units, weights))
            continue
        for i, weight in zip(group.indices, weights, strict=True):
            grad = grads[i]
            if grad is not None and grad.layout != torch.strided:  # the rows of an embedding that occurred
                rows = grad.coalesce()
                weight, grad = weight[rows.indices()[0]], rows.values()
            if grad is not None:
                yield _Piece([i], units, grad.shape, units.norms(grad), units.norms(weight))


def _norms(units: Units, tensors: list[Tensor]) -> Tensor:
    return units.norms(torch.stack(tensors), stacked=True) if len(tensors) > 1 else units.norms(tensors[0])
