"""A bound for each tensor's elements, at the running mean of its largest one."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from lightning_gradguard.arguments import between
from lightning_gradguard.clip.answer import LARGEST, Clip, norm_coefficient
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

# What one step may add to a running mean, in units of the bound before it.
_MAX_RISE = 2.0


@final
class MaxClip(ClipPolicy):
    """Scales down each tensor's elements beyond the running mean of its largest one (Stable-SPAM's *AdaClip*).

    m <- decay * m + (1 - decay) * min(max|g|, 2 m);  where |g_j| > m: g_j <- g_j * m / max|g|;  m starts at max|g|

    A single wild element is cut to m, and the rest of the tensor is left alone. A tensor that is wild as a whole comes
    down nearly as a whole: the largest element ends at m, and those beyond m keep their proportion to it. (Clamping
    would put them all at m: the step would stay large, and turn.) Each tensor is touched in about every second step, in
    few elements; the direction turns a little, and an element a little above m ends below one that was left alone.
    Choose it for low-precision training, where spikes sit in single elements. A clipped step
    takes a copy of the gradients.

    It departs from the paper's code on purpose. There the raw maximum enters m, and with nearly equal weight in the
    first steps (bias correction), so that an explosion in there is learned as normal; and a decay of 0.999 follows a
    lasting rise only after a thousand steps. Here a maximum enters with at most twice m, by the same small weight from
    the second step, and zero gradients do not count as steps. ``MaxClip(decay=0.999, original=True)`` is the paper's
    clipping.

    Args:
        decay: of the running mean, in (0, 1): 0.97 remembers about 33 steps.
        original: let the raw maximum in, with the paper's bias correction.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=MaxClip())
        >>> for grad in [[0.3, 0.4]] * 3 + [[0.3, 40.0]]:  # elements up to 0.4, and one of 40
        ...     net.weight.grad = torch.tensor([grad])
        ...     pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[0.3000, 0.4120]])

    Reference: Huang et al. 2025, arXiv:2502.17055.
    """

    per_parameter = ("bound", "steps")

    def __init__(self, decay: float = 0.97, original: bool = False) -> None:
        self.decay = between("decay", decay, 0.0, 1.0, "0.97 remembers about 33 steps", open_ends=True)
        self.original = original

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """No maximum seen."""
        return {
            "bound": torch.zeros(len(layout.params), dtype=torch.float32, device=device),
            "steps": torch.zeros(len(layout.params), dtype=torch.int64, device=device),
        }

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Lets this step's maxima into the running means, and holds the elements against these."""
        largest, bound, steps = measurement.max_abs, state["bound"], state["steps"]
        entry = largest.to(bound.dtype)
        known = (measurement.total <= LARGEST) & (entry > 0.0)
        first, steps = known & (steps == 0), steps + known
        if not self.original:
            entry = torch.minimum(entry, torch.where(first, entry, bound * _MAX_RISE))
        moved = torch.where(first, entry, torch.lerp(bound, entry, self._weight(steps)))
        bound = torch.where(known, moved, bound)
        state["bound"], state["steps"] = bound, steps

        limit = bound.masked_fill(steps == 0, torch.inf)
        return Clip(bound=limit, beyond=norm_coefficient(largest, limit), changes=(largest > limit).any())

    def _weight(self, steps: Tensor) -> Tensor | float:
        if self.original:  # m / (1 - decay^t), as a running mean
            return (1.0 - self.decay) / -torch.expm1(steps.float() * math.log(self.decay))
        return 1.0 - self.decay
