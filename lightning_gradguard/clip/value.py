"""A fixed bound for every element."""

from __future__ import annotations

from typing import final

import torch

from lightning_gradguard.arguments import positive
from lightning_gradguard.clip.answer import Clip
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement


@final
class ValueClip(ClipPolicy):
    """Keeps every element of the gradient within [-max_value, max_value].

    g_j <- max(-max_value, min(g_j, max_value)), as ``torch.nn.utils.clip_grad_value_``; complex elements by magnitude.
    It turns the direction of the gradient: large elements lose more than small ones. An infinite element would
    become a plausible number, which is why the guard looks first.

    Choose it when single elements are wild and their direction is not to be trusted; otherwise prefer a norm.

    Args:
        max_value: bound, in units of a gradient element, > 0; infinity clips nothing.

    Raises:
        TypeError: if ``max_value`` is no number.
        ValueError: if it is NaN, zero or negative.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=ValueClip(max_value=0.5))
        >>> net.weight.grad = torch.tensor([[3.0, 0.4]])
        >>> pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[0.5000, 0.4000]])

    Reference: Mikolov 2012, *Statistical language models based on neural networks* (PhD thesis, Brno).
    """

    def __init__(self, max_value: float) -> None:
        self.max_value = positive("max_value", max_value, "give the largest absolute element, such as 0.5")

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """Nothing to remember."""
        return {}

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Clamps to the bound."""
        return Clip(threshold=self.max_value, bound=self.max_value)
