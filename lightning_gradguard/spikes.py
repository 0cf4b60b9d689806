"""Finite but ruinous: flags a gradient norm or a loss far above what it was lately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from lightning_gradguard.arguments import show_arguments

# Standard deviation of a normal distribution over its median absolute deviation.
_SIGMA_PER_MAD = 1.4826


@dataclass(frozen=True)
class Spike:
    """One value outside of the band.

    Attributes:
        value: what was seen.
        usual: median of the window.
        limit: the value from which it would have been flagged.
    """

    value: float
    usual: float
    limit: float

    def __str__(self) -> str:
        times = self.value / self.usual
        return f"{self.value:.4g} is {times:.3g} times the usual {self.usual:.4g} (limit {self.limit:.4g})"


class SpikeRule:
    """What counts as a spike: log v > median + max(z · 1.4826 · MAD, log min_ratio), over the last values of log v.

    Median and MAD do not move for a few outliers, and gradient norms and losses are skewed, hence the logarithm.
    Flagged values stay out of the window, so a spike does not hide the next; but a level that holds for
    ``accept_after`` steps is no spike, and becomes the new normal. Values that are not positive and finite are not
    looked at: a NaN is the guard's business, and a loss that may be negative has no logarithm.

    Args:
        z: width of the band in robust standard deviations, > 0. 6: a normal log-norm passes it once in 10⁹ steps.
        min_ratio: how many times the median a spike has at least, > 1. 5 keeps quiet runs quiet, where MAD is tiny.
        window: how many good values to remember, at least ``warmup``.
        warmup: values before anything is flagged; early norms fall and rise with the learning rate's own warm-up.
        accept_after: flagged values in a row after which they are taken for the new level, at least 2.
        watch_loss: watch the loss as well as the gradient norm.
        drop: whether a spike is a bad step, to be dealt with as the guard's action has it; ``False`` only reports it.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> SpikeRule(min_ratio=10.0).window
        128

    Reference: the median/MAD outlier rule of Iglewicz and Hoaglin 1993, *How to Detect and Handle Outliers*.
    """

    def __init__(
        self,
        z: float = 6.0,
        min_ratio: float = 5.0,
        window: int = 128,
        warmup: int = 32,
        accept_after: int = 10,
        watch_loss: bool = True,
        drop: bool = True,
    ) -> None:
        if not z > 0 or math.isinf(z):
            raise ValueError(f"z must be positive and finite, got {z}")
        if not min_ratio > 1 or math.isinf(min_ratio):
            raise ValueError(f"min_ratio must be above 1 and finite, got {min_ratio}")
        if warmup < 2 or window < warmup:
            raise ValueError(f"2 <= warmup <= window must hold, got warmup={warmup}, window={window}")
        if accept_after < 2:
            raise ValueError(f"accept_after must be at least 2, got {accept_after}")
        self.z = z
        self.min_ratio = min_ratio
        self.window = window
        self.warmup = warmup
        self.accept_after = accept_after
        self.watch_loss = watch_loss
        self.drop = drop

    def __repr__(self) -> str:
        return show_arguments(self)


class SpikeWatch:
    """The window of one series of values.

    Args:
        rule: the settings.

    Example:
        >>> watch = SpikeWatch(SpikeRule(warmup=4))
        >>> [watch.see(value) for value in (1.0, 1.1, 0.9, 1.0)]
        [None, None, None, None]
        >>> watch.see(40.0).usual
        1.0
    """

    def __init__(self, rule: SpikeRule) -> None:
        self.rule = rule
        self._usual: list[float] = []
        self._flagged: list[float] = []

    def see(self, value: float) -> Spike | None:
        """Takes in one value; the spike, if it is one. Some 20 µs of Python: two medians of the window."""
        if not 0.0 < value < math.inf:
            return None
        log = math.log(value)
        spike = self._judge(log, value)
        if spike is None:
            self._flagged.clear()
            self._usual = [*self._usual[-self.rule.window + 1 :], log]
            return None
        self._flagged.append(log)
        if len(self._flagged) < self.rule.accept_after:
            return spike
        self._usual, self._flagged = self._flagged, []
        return None

    def _judge(self, log: float, value: float) -> Spike | None:
        if len(self._usual) < self.rule.warmup:
            return None
        middle = median(self._usual)
        if log <= middle + math.log(self.rule.min_ratio):  # most steps end here, with one median
            return None
        deviation = median([abs(one - middle) for one in self._usual])
        limit = middle + max(self.rule.z * _SIGMA_PER_MAD * deviation, math.log(self.rule.min_ratio))
        return Spike(value, math.exp(middle), math.exp(min(limit, 700.0))) if log > limit else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the window, as lists of numbers."""
        return {"usual": list(self._usual), "flagged": list(self._flagged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._usual = [float(value) for value in state["usual"]][-self.rule.window :]
        self._flagged = [float(value) for value in state["flagged"]]
