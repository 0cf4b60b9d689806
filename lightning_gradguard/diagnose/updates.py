"""How far a step really moved the weights, measured on sampled steps."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradguard.diagnose.probe import is_sampled
from lightning_gradguard.layout import Layout
from lightning_gradguard.measure import whole_norms
from lightning_gradguard.window import by_layer


class UpdateMeter:
    """Measures ||change of the weights|| / ||weights|| of each layer on sampled steps.

    The true figure, whatever the optimizer does with the gradient: ``lr * ||g||`` is wrong for Adam, momentum and
    weight decay. On a sampled step the parameters are copied before ``optimizer.step()`` and compared after it: their
    memory once more for the length of the step; other steps cost one comparison.

    Args:
        layout: the parameters of the optimizer.
        every_n_steps: interval between sampled steps, >= 1; the powers of two below it are sampled as well.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.

    Example:
        >>> import torch
        >>> from lightning_gradguard.layout import Layout
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> meter = UpdateMeter(Layout.from_optimizer(net, optimizer))
        >>> net.weight.data.fill_(1.0), net(torch.ones(1, 2)).sum().backward()
        (tensor([[1., 1.]]), None)
        >>> meter.before_step(0)
        >>> optimizer.step()
        >>> meter.after_step()
        >>> meter.take()
        (0.5,)
    """

    def __init__(self, layout: Layout, every_n_steps: int = 50) -> None:
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"every_n_steps must be an int of at least 1, got {every_n_steps!r}")
        self.layout = layout
        self.every_n_steps = every_n_steps
        self._before: list[Tensor] | None = None
        self._largest: Tensor | None = None

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Copies the parameters if the step is sampled; call it before ``optimizer.step()``."""
        if is_sampled(step, self.every_n_steps):
            self._before = [value.clone() for value in self.layout.values()]

    @torch.no_grad()
    def after_step(self) -> None:
        """Compares; call it after ``optimizer.step()``, on every step."""
        if self._before is None:
            return
        before, self._before = self._before, None
        weights = by_layer(self.layout, whole_norms(self.layout, before))
        moved = [now - old for now, old in zip(self.layout.values(), before, strict=True)]
        ratios = by_layer(self.layout, whole_norms(self.layout, moved)) / weights  # 0 / 0 is NaN: nothing to speak of
        self._largest = ratios if self._largest is None else torch.fmax(self._largest, ratios)

    def take(self) -> tuple[float | None, ...] | None:
        """Largest ratio of each layer over the sampled steps since the last call; ``None`` without a new sample.

        ``None`` for a layer whose weights are all zero and stay so; infinity where they were zero and moved.
        """
        if self._largest is None:
            return None
        ratios, self._largest = self._largest.tolist(), None  # host sync: a sampled step
        return tuple(None if ratio != ratio else ratio for ratio in ratios)
