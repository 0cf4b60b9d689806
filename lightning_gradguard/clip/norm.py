"""A fixed ceiling for the norm."""

from __future__ import annotations

from typing import final

import torch

from lightning_gradguard.arguments import positive
from lightning_gradguard.clip.answer import Clip, limited, number
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

# What torch adds to the norm, so that training is the same as with `gradient_clip_val`.
_EPS = 1e-6


@final
class NormClip(ClipPolicy):
    """Keeps the total gradient norm at or below a fixed ceiling.

    g <- g * min(1, max_norm / (||g|| + 1e-6)), with ||g|| over all parameters of the optimizer: the formula of
    ``torch.nn.utils.clip_grad_norm_`` and of ``Trainer(gradient_clip_val=max_norm)``. Its results agree to float32
    rounding and not to the last bit: norms are summed here in another order, which is a little more exact. The
    direction is kept.

    Choose it when you know the scale of your gradients, or as the ceiling of an explosive training. Values in use:
    1.0 for transformers, 0.25 to 5 for recurrent networks (PyTorch's word_language_model example: 0.25).

    Args:
        max_norm: ceiling, in units of the gradient's l2 norm, > 0; infinity clips nothing.

    Raises:
        TypeError: if ``max_norm`` is no number.
        ValueError: if it is NaN, zero or negative.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=NormClip(max_norm=1.0))
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[0.6000, 0.8000]])

    Reference: Pascanu et al. 2013, arXiv:1211.5063.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = positive("max_norm", max_norm, "give the largest norm a step may have, such as 1.0")

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """Nothing to remember."""
        return {}

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Scales down to the ceiling."""
        return limited(measurement, "norm", number(measurement.total), self.max_norm, self.max_norm, _EPS)
