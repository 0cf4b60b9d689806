"""How gradients change over depth: layers in the order of the forward pass, and a line through them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradguard.record import StepRecord, forward_order

# Their gradients are scaled otherwise than those of weight matrices: not comparable over depth.
_LEFT_OUT = ("Norm", "Embedding", ".bias")
DEEP = 6  # layers from which an initialization alone is a thin thread


@dataclass(frozen=True)
class Profile:
    """One number per layer, input first.

    Attributes:
        layers: names.
        values: what is compared, > 0.
    """

    layers: tuple[str, ...]
    values: tuple[float, ...]

    @functools.cached_property
    def line(self) -> Line | None:
        """Returns the line through them, see :func:`fit_line`."""
        return fit_line(self.values)


@dataclass(frozen=True)
class Line:
    """A straight line through log10 of a profile.

    Attributes:
        slope: decades per layer, towards the output.
        error: standard error of the slope; 0 for a perfect line.
        decades: what the line rises from the first layer to the last.
    """

    slope: float
    error: float
    decades: float

    @property
    def is_certain(self) -> bool:
        """Tells whether the slope is at least three standard errors away from level."""
        return abs(self.slope) > 3 * self.error

    @property
    def is_straight(self) -> bool:
        """Tells whether it is certain, and more than half of what layers differ by lies along it.

        What each layer of a chain multiplies fades or grows along a line; parts that stand beside each other differ for
        reasons of their own, and among a hundred of them a slight slope is soon certain.
        """
        if self.error == 0 or self.slope == 0:
            return self.is_certain
        t = (self.slope / self.error) ** 2
        return self.is_certain and t > self.decades / self.slope - 1  # t² / (t² + n - 2) is the share of the variance

    def as_evidence(self) -> dict[str, float]:
        """Returns the line as a finding shows it."""
        return {"decades": self.decades, "slope": self.slope, "slope_error": self.error}


def execution_order(record: StepRecord) -> Sequence[int]:
    """Returns indices of the layers as the forward pass meets them.

    Without a recorded forward pass that is the order of registration. A layer that was not seen to run stays behind
    the one that it is registered after.
    """
    return range(len(record.layers)) if record.depth is None else forward_order(record.depth)


def weight_layers(record: StepRecord) -> Sequence[int]:
    """Returns indices of the layers that hold weight matrices, in the order of the forward pass."""
    if record.layer_kinds is None:
        return execution_order(record)
    return _of_weights(record.layer_kinds, record.depth)


# Records of a run hold the same depths and kinds, so what follows from them is found once.
@functools.lru_cache(maxsize=32)
def _of_weights(kinds: tuple[str, ...], depth: tuple[int | None, ...] | None) -> tuple[int, ...]:
    order = range(len(kinds)) if depth is None else forward_order(depth)
    return tuple(i for i in order if not any(part in kinds[i] for part in _LEFT_OUT))


def has_norms(record: StepRecord) -> bool:
    """Tells whether any layer normalizes."""
    return any("Norm" in kind for kind in record.layer_kinds or ())


def missing_norms(record: StepRecord) -> tuple[str, ...]:
    """That no layer normalizes, as a cause in words; nothing where one does."""
    return () if has_norms(record) else ("there is no normalization between the layers",)


def _once(profile: Callable[[StepRecord], Profile]) -> Callable[[StepRecord], Profile]:
    """Makes several rules share what is found in one record."""
    key = f"_{profile.__name__}"

    @functools.wraps(profile)
    def shared(record: StepRecord) -> Profile:
        if key not in record.__dict__:
            record.__dict__[key] = profile(record)
        found: Profile = record.__dict__[key]
        return found

    return shared


@_once
def gradient_profile(record: StepRecord) -> Profile:
    """Root mean square gradient of each layer that has one other than zero; the plain norm where sizes are unknown."""
    layers, values = [], []
    for i in weight_layers(record):
        norm = record.layer_norms[i]
        if norm is not None and math.isfinite(norm) and norm > 0:
            size = record.layer_sizes[i] if record.layer_sizes else 1
            layers.append(record.layers[i])
            values.append(norm / math.sqrt(size))
    return Profile(tuple(layers), tuple(values))


@_once
def relative_profile(record: StepRecord) -> Profile:
    """Gradient norm over weight norm of each layer that has both."""
    layers, values = [], []
    for i in weight_layers(record):
        norm = record.layer_norms[i]
        weight = record.weight_norms[i] if record.weight_norms else None
        if norm is not None and weight and math.isfinite(norm) and norm > 0 and math.isfinite(weight):
            layers.append(record.layers[i])
            values.append(norm / weight)
    return Profile(tuple(layers), tuple(values))


def fit_line(values: Sequence[float]) -> Line | None:
    """Least squares through log10 of the values over their index; ``None`` for fewer than four of them."""
    n = len(values)
    if n < 4:
        return None
    x, y = np.arange(n) - (n - 1) / 2, np.log10(np.asarray(values))
    y -= y.mean()
    spread = x @ x
    slope = float(x @ y / spread)
    residual = float(((y - slope * x) ** 2).sum())
    return Line(slope, math.sqrt(residual / (n - 2) / spread), slope * (n - 1))
