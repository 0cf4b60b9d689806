"""A ceiling that drifts to a quantile of the norms, with a single number to remember."""

from __future__ import annotations

import math
from typing import final

import torch

from lightning_gradguard.arguments import By, between, ceiling, positive, quantity
from lightning_gradguard.clip.answer import LARGEST, Clip, clamp, limited, observed, where
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

_MAX_LOG = 80.0  # of a factor in float32


@final
class QuantileClip(ClipPolicy):
    """Clips to a quantile of the norms, which it tracks by small steps up and down.

    g <- g * min(1, C / ||g||);  C <- C * exp(rate * (quantile - [||g|| <= C]))

    At rest ``quantile`` of the steps lie below C. It needs no history, moves by at most ``rate`` a step however wild
    the norm (nothing can be learned as normal in one step), and never locks in. Choose it instead of
    :class:`~lightning_gradguard.clip.autoclip.AutoClip` where memory or a long window matters.

    It departs from its paper on purpose: there the fraction below C is a noisy mean over the examples of a batch, for
    privacy; here it is the step itself, and C starts at the first norm.

    Args:
        quantile: fraction of steps to leave alone, in (0, 1). The paper's 0.5 is a robust choice; 0.9 for spikes only,
            which is then slow to come down from a high start.
        rate: of change of log C, > 0: the paper's 0.2. A rise by a factor r is followed in log(r) / (rate * quantile)
            steps.
        max_norm: a hard ceiling beside C, > 0 (``None``: none). With ``by="value"`` it bounds elements.
        by: ``"norm"`` follows the total norm and scales; ``"value"`` follows the largest absolute element and clamps.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=QuantileClip())
        >>> for grad in [[3.0, 4.0]] * 3 + [[300.0, 400.0]]:  # norms of 5, and one of 500
        ...     net.weight.grad = torch.tensor([grad])
        ...     pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[2.7145, 3.6193]])

    Reference: Andrew et al. 2021, arXiv:1905.03871.
    """

    single = ("threshold",)

    def __init__(
        self, quantile: float = 0.5, rate: float = 0.2, max_norm: float | None = None, by: By = "norm"
    ) -> None:
        self.quantile = between("quantile", quantile, 0.0, 1.0, "0.5 clips to the median", open_ends=True)
        self.rate = positive("rate", rate, "the paper's is 0.2")
        self.max_norm = ceiling(max_norm)
        self.by = quantity(by)

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """No step seen: a threshold of zero means *unknown*."""
        return {"threshold": torch.zeros((), dtype=torch.float32, device=device)}

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Clips to the tracked quantile, then moves it."""
        (level, total), old = observed(measurement, self.by), state["threshold"]
        known = (total > 0.0) & (total <= LARGEST)
        first = old == 0.0
        threshold = where(known & first, level, old)
        below = (level <= threshold) | first
        moved = where(below, threshold * self._factor(1.0), threshold * self._factor(0.0))
        state["threshold"] = where(known, moved, old)

        target = where(threshold == 0.0, math.inf, threshold)
        target = target if self.max_norm is None else clamp(target, highest=self.max_norm)
        return limited(measurement, self.by, level, target, target)

    def _factor(self, below: float) -> float:
        return math.exp(min((self.quantile - below) * self.rate, _MAX_LOG))
