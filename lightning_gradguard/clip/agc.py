"""A ceiling for each unit's gradient, relative to the unit's weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_gradguard.arguments import patterns, positive
from lightning_gradguard.clip.agc_sharded import measure_sharded_units
from lightning_gradguard.clip.agc_units import units_of
from lightning_gradguard.clip.base import Clip, ClipPolicy, State, norm_coefficient
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.units import UnitOrder, Units


@final
class AGC(ClipPolicy):
    """Keeps each unit's gradient small beside the unit's weights (adaptive gradient clipping of the NFNets).

    limit_i = ratio * max(||W_i||, eps);  G_i <- G_i * min(1, limit_i / ||G_i||)

    A unit i is what feeds one output: a row of a linear, convolution, embedding, attention or recurrent weight, a
    column of a transposed convolution; a bias or gain is one unit. See
    :func:`~lightning_gradguard.clip.agc_units.units_of`. The direction turns, since units are scaled apart.

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
        if layout.names and all(_is_excluded(name, self.exclude) for name in layout.names):
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
        wanted = _wanted_of(measurement.layout, self.exclude)
        answer: list[Tensor | None] = [None] * len(measurement.grads)
        seen = measurement.by_unit(wanted.gradients)
        wanted.follow(seen.order, measurement)
        changes = []
        if wanted.clipped:
            factors = self._factors(seen.norms, wanted.weights.of_units(wanted.clipped).norms)
            changes.append((factors < 1.0).any())
            answer = seen.spread(factors, len(answer))
        for index, units in wanted.odd:
            factors, answer[index] = self._factors_of_odd(measurement, index, units)
            changes.append((factors < 1.0).any().to(measurement.total.device, non_blocking=True))
        if len(changes) > 1:
            changes = [torch.stack(changes).any()]
        return Clip(units=answer, changes=changes[0] if changes else None)

    def _factors(self, grads: Tensor, weights: Tensor) -> Tensor:
        return norm_coefficient(grads, weights.clamp(min=self.eps) * self.ratio)

    def _factors_of_odd(self, measurement: Measurement, index: int, units: Units) -> tuple[Tensor, Tensor]:
        """The same for one sparse or complex gradient: as a vector, and so that it broadcasts."""
        grad = measurement.grads[index]
        weight: Tensor = measurement.layout.params[index]
        assert grad is not None
        if grad.layout != torch.strided:  # the rows of an embedding that occurred
            grad = grad.coalesce()
            weight, grad = weight[grad.indices()[0]], grad.values()
        norms = units.norms(grad)
        if measurement.scale is not None:
            norms = norms * (measurement.scale[index] if measurement.scale.dim() else measurement.scale)
        factors = self._factors(norms, units.norms(weight))
        return factors, units.spread(factors, grad.shape, 1)[0]

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


class _Wanted:
    """What of a layout is clipped; the rest of it is found anew only when gradients come or go.

    Attributes:
        units: of each parameter; ``None`` for those that are left alone.
        gradients: asks for the units of gradients.
        weights: measures those of weights.
        clipped: the parameters whose units were measured, ``None`` for others; empty if there is none.
        odd: indices and units of sparse and complex gradients.
    """

    def __init__(self, layout: Layout, exclude: tuple[str, ...]) -> None:
        self.units = [
            None if _is_excluded(name, exclude) else units
            for name, units in zip(layout.names, units_of(layout), strict=True)
        ]
        self.gradients, self.weights = Norms(self.units), Norms(self.units)
        self.clipped: list[Tensor | None] = []
        self.odd: list[tuple[int, Units]] = []
        self._order: UnitOrder | None = None

    def follow(self, order: UnitOrder, measurement: Measurement) -> None:
        """Takes in which gradients there are, if that changed."""
        if order is self._order:
            return
        here = {index for run in order.runs for index in run.indices}
        params = measurement.layout.params
        self.clipped = [param if index in here else None for index, param in enumerate(params)] if here else []
        self.odd = [
            (index, units)
            for index, (units, grad) in enumerate(zip(self.units, measurement.grads, strict=True))
            if units is not None and grad is not None and grad.numel() and index not in here
        ]
        self._order = order


_wanted: WeakKeyDictionary[Layout, dict[tuple[str, ...], _Wanted]] = WeakKeyDictionary()


def _wanted_of(layout: Layout, exclude: tuple[str, ...]) -> _Wanted:
    """Found once for each layout."""
    known = _wanted.setdefault(layout, {})
    if exclude not in known:
        known[exclude] = _Wanted(layout, exclude)
    return known[exclude]


def _is_excluded(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
