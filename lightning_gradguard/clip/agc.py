"""A ceiling for each unit's gradient, relative to the unit's weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import final

import torch

from lightning_gradguard.arguments import patterns, positive
from lightning_gradguard.clip.agc_units import units_of
from lightning_gradguard.clip.answer import Clip, norm_coefficient
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.needs import Needs


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
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=AGC(ratio=0.01))
        >>> net.weight.grad = torch.tensor([[0.3, 0.4], [0.003, 0.004]])  # of units whose weights have a norm of 1.41
        >>> pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[0.0085, 0.0113],
                [0.0030, 0.0040]])

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

    def needs(self, layout: Layout) -> Needs:
        """Returns the units of every parameter that is not excluded."""
        kinds = zip(layout.names, units_of(layout), strict=True)
        return Needs(units=tuple(None if _is_excluded(name, self.exclude) else units for name, units in kinds))

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Compares the gradient of each unit with its weights."""
        changes, by_unit = [], []
        for units in measurement.by_unit(self):
            # Weights of zero would never train: they count as ``eps``.
            factors = norm_coefficient(units.norms, units.weights.clamp(min=self.eps) * self.ratio)
            by_unit.append((units, factors))
            changes.append((factors < 1.0).any().to(measurement.total.device, non_blocking=True))
        if len(changes) > 1:  # sparse and complex gradients are measured apart
            changes = [torch.stack(changes).any()]
        return Clip(by_unit=by_unit, changes=changes[0] if changes else None)


def _is_excluded(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
