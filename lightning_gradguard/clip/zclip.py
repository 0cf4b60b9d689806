"""A ceiling that follows mean and spread of the norms."""

from __future__ import annotations

from typing import Literal, final

import torch

from lightning_gradguard.clip.arguments import between, ceiling, one_of, positive, quantity, whole
from lightning_gradguard.clip.base import LARGEST, By, Clip, ClipPolicy, State, limited, observed
from lightning_gradguard.layout import Layout
from lightning_gradguard.measure import Measurement

Target = Literal["adaptive_scaling", "mean", "percentile"]

_EPS = 1e-6
# The spread is taken to be at least this fraction of the mean: equal norms do not make the next one a spike.
_FLOOR = 0.1


@final
class ZClip(ClipPolicy):
    """Clips spikes: steps whose norm lies more than ``z`` standard deviations above the running mean.

    z_t = (||g|| - mu) / sigma;  if z_t > z:  g <- g * c / ||g|| with c = mu + z^2 * sigma / z_t

    The larger the spike, the closer to the mean it is cut. mu and sigma are those of the steps before.
    """

    def __init__(
        self,
        z: float = 2.5,
        decay: float = 0.97,
        warmup: int = 25,
        max_norm: float | None = None,
        by: By = "norm",
        to: Target = "adaptive_scaling",
        original: bool = False,
    ) -> None:
        self.z = positive("z", z, "2.5 clips what lies 2.5 standard deviations above the mean")
        self.decay = between("decay", decay, 0.0, 1.0, "0.97 remembers about 33 steps", open_ends=True)
        self.warmup = whole("warmup", warmup, 1, "give the number of steps to average with equal weight")
        self.max_norm = ceiling(max_norm)
        self.by = quantity(by)
        self.to = one_of("to", to, ("adaptive_scaling", "mean", "percentile"))
        self.original = original

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """No step seen: a mean of zero means *unknown*."""
        return {
            "mean": torch.zeros((), device=device),
            "variance": torch.zeros((), device=device),
            "count": torch.zeros((), dtype=torch.int64, device=device),
        }

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Compares with the statistics of the steps before, then lets this step into them."""
        level = observed(measurement, self.by)
        mean, variance, count = state["mean"], state["variance"], state["count"]
        sigma = variance.sqrt()
        width = torch.maximum(sigma, mean * _FLOOR)
        margin = width * self.z
        active = mean > 0.0
        limit = torch.where(active, mean + margin, torch.inf)
        spike = level > limit
        cut = torch.addcmul(mean, margin, margin / (level - mean))
        learned = torch.minimum(level, limit)

        known = measurement.total <= LARGEST
        steps = count + known
        weight = torch.where(steps <= self.warmup, steps.reciprocal(), 1.0 - self.decay)
        new_mean = torch.lerp(mean, learned.to(mean.dtype), weight)
        off = learned - new_mean
        new_variance = torch.lerp(variance, (off * off).to(mean.dtype), weight)
        state.update(
            mean=torch.where(known, new_mean, mean),
            variance=torch.where(known, new_variance, variance),
            count=steps,
        )
        target = torch.where(spike, cut, torch.inf)
        if self.max_norm is not None:
            target, limit = target.clamp(max=self.max_norm), limit.clamp(max=self.max_norm)
        return limited(measurement, self.by, limit, target)
