"""A ceiling for each tensor's norm, at its own running mean."""

from __future__ import annotations

from typing import final

import torch

from lightning_gradguard.arguments import between, positive, whole
from lightning_gradguard.clip.answer import LARGEST, Clip, norm_coefficient
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

# What one step may add to a running mean, in units of that mean: it can grow by a factor of ten in 120 steps.
_MAX_RISE = 2.0


@final
class AdaGC(ClipPolicy):
    """Clips each tensor to a little above the running mean of its own norm.

    h_i = min(1, ratio * gamma_i / ||g_i||);  g_i <- h_i g_i;  gamma_i <- EMA of min(||g_i||, 2 gamma_i)
    in the warm-up also h_i <= warmup_max_norm / ||g||;  gamma_i starts at the first ||h_i g_i||

    A spike in one layer leaves the others alone, and the direction turns. With noisy norms it clips often: nearly
    half of the tensors, a little. Choose it for large models whose spikes come from single layers.

    It departs from the paper on purpose. There the warm-up knows nothing but its fixed ceiling, and leaves the smallest
    norm of all its steps in gamma_i: an explosion below the ceiling goes unnoticed, and healthy steps after it are cut.
    And gamma_i averages the *clipped* norm, which can grow by 0.1 % a step and lies below the mean of a noisy norm: a
    lasting rise by ten takes more than two thousand steps. ``original=True`` gives both back. A zero gradient is never
    learned (it would freeze its tensor for ever), and a gradient that first arrives after the warm-up is scaled with
    the others until its norm is known.

    Args:
        ratio: of a tensor's norm to its running mean at which it is clipped, >= 1: the paper's 1.05.
        decay: of the running mean, in (0, 1): the paper's 0.98 remembers 50 steps.
        warmup: first steps with a ceiling for the total norm, >= 0: the paper's 100.
        warmup_max_norm: that ceiling, > 0: the paper's 1.0.
        original: the paper's warm-up and average, as described above.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=AdaGC(warmup=0))
        >>> for grad in [[0.3, 0.4]] * 3 + [[30.0, 40.0]]:  # norms of 0.5, and one of 50
        ...     net.weight.grad = torch.tensor([grad])
        ...     pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[0.3150, 0.4200]])

    Reference: Wang et al. 2025, arXiv:2502.11034.
    """

    per_parameter = ("gamma",)

    def __init__(
        self,
        ratio: float = 1.05,
        decay: float = 0.98,
        warmup: int = 100,
        warmup_max_norm: float = 1.0,
        original: bool = False,
    ) -> None:
        self.ratio = between(
            "ratio", ratio, 1.0, float("inf"), "below 1 every step would be clipped; the paper's is 1.05"
        )
        self.decay = between("decay", decay, 0.0, 1.0, "0.98 remembers about 50 steps", open_ends=True)
        self.warmup = whole("warmup", warmup, 0, "give the number of steps of scaling all tensors together")
        self.warmup_max_norm = positive("warmup_max_norm", warmup_max_norm, "the paper's is 1.0")
        self.original = original

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """No norm seen; a running mean of zero means *unknown*."""
        return {
            "gamma": torch.zeros(len(layout.params), dtype=torch.float32, device=device),
            "count": torch.zeros((), dtype=torch.int64, device=device),
        }

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Compares each tensor with its own past, then lets this step into it."""
        norms, total = measurement.norms, measurement.total
        gamma, count = state["gamma"], state["count"]
        unknown = gamma == 0.0
        together = norm_coefficient(total, self.warmup_max_norm)
        alone = norm_coefficient(norms, gamma * self.ratio)
        warm = count < self.warmup
        in_warmup = together if self.original else torch.minimum(together, alone)
        coefficient = torch.where(unknown, together, torch.where(warm, in_warmup, alone))

        scaled = norms * coefficient
        entry = scaled if self.original else torch.minimum(norms, gamma * _MAX_RISE)
        learned = torch.lerp(gamma, entry.to(gamma.dtype), 1.0 - self.decay)
        if self.original:
            learned = torch.where(warm, torch.minimum(gamma, scaled.to(gamma.dtype)), learned)
        learned = torch.where(unknown, scaled.to(gamma.dtype), learned)
        known = total <= LARGEST
        state["gamma"] = torch.where(known & (norms > 0.0), learned, gamma)
        state["count"] = count + known
        return Clip(coefficient=coefficient)
