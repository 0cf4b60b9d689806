"""A ceiling that follows mean and spread of the norms."""

from __future__ import annotations

import math
import warnings
from typing import Literal, final

import torch

from lightning_gradguard.arguments import By, between, ceiling, one_of, positive, quantity, whole
from lightning_gradguard.clip.answer import (
    LARGEST,
    Clip,
    Number,
    clamp,
    divide,
    lerp,
    limited,
    maximum,
    observed,
    plus_product,
    products,
    sqrt,
    where,
)
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

Target = Literal["adaptive_scaling", "mean", "percentile"]

# The paper's code adds it to the spread and to the norm it divides by.
_EPS = 1e-6
# The spread counts as at least this fraction of the mean: after equal norms the next one is no spike.
_FLOOR = 0.25
# A step up to so many times the limit enters the statistics whole, a wilder one as the limit.
_WILD = 1.5
_PAPERS_WARMUP = 25
_TINY = torch.finfo(torch.float32).tiny


@final
class ZClip(ClipPolicy):
    """Clips spikes: steps whose norm lies more than ``z`` standard deviations above the running mean.

    limit = mu + z * sigma;  if ||g|| > limit:  g <- g * c / ||g||,  c = mu + (z * sigma)^2 / (||g|| - mu)

    mu and sigma are those of the steps before. The larger the spike, the nearer to the mean it is cut, which is the
    paper's ``adaptive_scaling``. Ordinary steps are left alone: use it where training is mostly calm.

    It departs from the paper's code on purpose. Protection is on from the second step, and the statistics move by the
    same small weight from then on, where the paper collects raw norms for a warm-up of 25 steps: explosions begin in
    there, and would be learned as normal. A step within 1.5 times the limit enters mu and sigma whole, a wilder one as
    the limit rather than as what it was cut to: a lasting rise is followed, where the paper's rule can clip every step
    for ever. sigma is at least a quarter of mu, so that equal norms do not make the next one a spike; a value that is
    not finite never enters. ``original=True`` gives the paper's code in all this but the last.

    Args:
        z: standard deviations, > 0. The paper's 2.5; its authors took 2 for very high learning rates.
        decay: of the running statistics, in (0, 1): 0.97 remembers about 33 steps.
        warmup: with ``original``, the first steps, >= 1, which are collected and not clipped, except to ``max_norm``.
        max_norm: a hard ceiling beside the limit, > 0 (``None``: none). Advised where training can explode with its
            first step, which no history can foresee; the paper's code has 1.0. With ``by="value"`` it bounds elements.
        by: ``"norm"`` follows the total norm and scales; ``"value"`` follows the largest absolute element and clamps,
            which is a weak guard against a step that is large as a whole: all its elements end at the bound.
        to: where a spike is cut to: ``"adaptive_scaling"`` c as above, ``"mean"`` mu, ``"percentile"`` the limit.
        original: the statistics of the paper's code, as described above.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=ZClip())
        >>> for grad in [[3.0, 4.0]] * 3 + [[300.0, 400.0]]:  # norms of 5, and a spike of 500
        ...     net.weight.grad = torch.tensor([grad])
        ...     pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[3.0118, 4.0158]])

    Reference: Kumar et al. 2025, arXiv:2504.02507.
    """

    single = ("mean", "variance", "count")

    def __init__(
        self,
        z: float = 2.5,
        decay: float = 0.97,
        warmup: int = _PAPERS_WARMUP,
        max_norm: float | None = None,
        by: By = "norm",
        to: Target = "adaptive_scaling",
        original: bool = False,
    ) -> None:
        self.z = positive("z", z, "2.5 clips what lies 2.5 standard deviations above the mean")
        self.decay = between("decay", decay, 0.0, 1.0, "0.97 remembers about 33 steps", open_ends=True)
        self.warmup = whole("warmup", warmup, 1, "give the number of steps to collect with original=True")
        self.max_norm = ceiling(max_norm)
        self.by = quantity(by)
        self.to = one_of("to", to, ("adaptive_scaling", "mean", "percentile"))
        self.original = original

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """No step seen; a mean of zero means *unknown*. Steps are counted for ``original`` only."""
        return {
            "mean": torch.zeros((), dtype=torch.float32, device=device),
            "variance": torch.zeros((), dtype=torch.float32, device=device),
            "count": torch.zeros((), dtype=torch.float32, device=device),
        }

    def check(self, layout: Layout) -> None:
        """Warns of a warm-up that has no effect."""
        if self.warmup != _PAPERS_WARMUP and not self.original:
            warnings.warn(f"ZClip: warmup={self.warmup} has no effect without original=True", stacklevel=2)

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Compares with the statistics of the steps before, then lets this step into them."""
        (level, total), mean = observed(measurement, self.by), state["mean"]
        sigma, unknown = sqrt(state["variance"]), mean == 0.0
        if self.original:
            reach = where(state["count"] < self.warmup, math.inf, sigma * self.z)
            margin = reach if self.to == "percentile" else reach + self.z * _EPS
            limit = mean + margin
            target = self._target(level, mean, limit, reach, margin)
            known = total <= LARGEST
            self._learn_as_published(where(level > limit, target, level), known, state)
        else:
            spread, floor, tamed, kept = products(
                (sigma, mean, level, state["variance"]), (self.z, _FLOOR * self.z, 1.0 / _WILD, self.decay)
            )
            reach = margin = where(unknown, math.inf, maximum(spread, floor))
            limit = mean + margin
            target = self._target(level, mean, limit, reach, margin)
            known = total <= LARGEST
            # The statistics move by the same small weight at each step; the first one is taken whole.
            learned = where(tamed > limit, limit, level)
            moved = lerp(where(unknown, learned, mean), learned, 1.0 - self.decay)
            off = learned - moved
            state["variance"] = where(known, plus_product(kept, off, off, 1.0 - self.decay), state["variance"])
            state["mean"] = where(known, moved, mean)
        if self.max_norm is not None:
            target, limit = clamp(target, highest=self.max_norm), clamp(limit, highest=self.max_norm)
        return limited(measurement, self.by, level, limit, target, _EPS if self.original else 0.0)

    def _target(self, level: Number, mean: Number, limit: Number, reach: Number, margin: Number) -> Number:
        if self.to == "percentile":
            return limit
        if self.to == "mean":
            return where(level > limit, mean, limit)
        gap = clamp(level - mean, _TINY, LARGEST)
        return plus_product(mean, reach, divide(margin, gap))  # at or above the norm itself wherever that is no spike

    def _learn_as_published(self, learned: Number, known: Number, state: State) -> None:
        """Mean and population variance of the warm-up, then moving ones."""
        count = state["count"] + known
        past = count > self.warmup
        weight = where(past, 1.0 - self.decay, divide(1.0, count))
        mean = lerp(state["mean"], learned, weight)
        square = (learned - mean) * (learned - mean)
        square = where(past, square, divide(square, clamp(1.0 - weight, lowest=_EPS)))
        state["variance"] = where(known, lerp(state["variance"], square, weight), state["variance"])
        state["mean"], state["count"] = where(known, mean, state["mean"]), count
