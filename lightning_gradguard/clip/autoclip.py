"""A ceiling at a percentile of the norms seen so far."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_gradguard.arguments import By, between, ceiling, quantity, whole
from lightning_gradguard.clip.answer import LARGEST, Clip, Number, clamp, limited, minimum, number, observed
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement

# What one step may add to the history, in units of the threshold before it.
_MAX_RISE = 10.0


@final
class AutoClip(ClipPolicy):
    """Clips to a percentile of the recent gradient norms.

    G <- G + [||g||];  eta = percentile_p(G) (linear interpolation);  g <- g * min(1, eta / ||g||)

    With the paper's p = 10 about nine steps in ten are scaled down: it evens out step sizes rather than catching
    rare spikes (for those take p = 90, or :class:`~lightning_gradguard.clip.zclip.ZClip`).

    It departs from the paper's code on purpose: the history is a window, so that the threshold follows a lasting
    change and memory is bounded; a step enters it with at most ten times the threshold before it, so that an
    explosion in the first steps is not learned as normal; a step that is zero or not finite does not enter it.
    ``original=True`` with a window as long as the run is the paper.

    Args:
        percentile: of the history, in [0, 100]; the paper found 10 best of 0, 1, 10, 25, 50, 90, 100.
        window: how many steps the history holds, >= 1: the threshold has followed a lasting rise when about
            ``1 - percentile / 100`` of it has passed. It costs 4 bytes a step, and sorting it once a step.
        max_norm: a hard ceiling beside the percentile, > 0 (``None``: none). Advised where training can explode
            with its first step, which no history can foresee. With ``by="value"`` it bounds elements.
        by: ``"norm"`` follows the total norm and scales; ``"value"`` follows the largest absolute element and clamps.
        original: let raw norms into the history, however large.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=AutoClip())
        >>> for grad in [[3.0, 4.0]] * 3 + [[300.0, 400.0]]:  # norms of 5, and one of 500
        ...     net.weight.grad = torch.tensor([grad])
        ...     pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[3., 4.]])

    Reference: Seetharaman et al. 2020, arXiv:2007.14469.
    """

    single = ("count", "threshold")

    def __init__(
        self,
        percentile: float = 10.0,
        window: int = 100,
        max_norm: float | None = None,
        by: By = "norm",
        original: bool = False,
    ) -> None:
        self.percentile = between("percentile", percentile, 0.0, 100.0, "10 clips to the 10th percentile")
        self.window = whole("window", window, 1, "give the number of steps to remember")
        self.max_norm = ceiling(max_norm)
        self.by = quantity(by)
        self.original = original

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """Returns an empty history: the places not yet taken hold the largest float, which sorts last."""
        return {
            "history": torch.full((self.window,), LARGEST, dtype=torch.float32, device=device),
            "count": torch.zeros((), dtype=torch.int64, device=device),
            "threshold": torch.full((), LARGEST, dtype=torch.float32, device=device),
        }

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Adds this step to the history and clips to its percentile."""
        level, total = observed(measurement, self.by)
        known = (total > 0.0) & (total <= LARGEST)
        history, count, threshold = state["history"], state["count"], state["threshold"]

        entry = clamp(level if self.original else minimum(level, threshold * _MAX_RISE), highest=LARGEST)
        places = torch.arange(self.window, dtype=history.dtype, device=history.device)
        history = history.masked_fill((places == count % self.window) & known, entry)
        count = count + known
        threshold = number(self._percentile(history, places, clamp(count - 1, 0, self.window - 1)))
        state.update(history=history, count=count, threshold=threshold)

        target = threshold if self.max_norm is None else clamp(threshold, highest=self.max_norm)
        return limited(measurement, self.by, level, target, target)

    def _percentile(self, history: Tensor, ranks: Tensor, last: Number) -> Tensor:
        """Returns the percentile of the entries up to the one that ranks ``last``."""
        ranked = history.sort().values
        distance = torch.sub(ranks, last, alpha=self.percentile / 100.0).abs()
        return ranked.dot((1.0 - distance).clamp(min=0.0))  # the two neighbours, by their nearness
