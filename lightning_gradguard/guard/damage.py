"""What is wrong with one step: which elements are not finite, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from lightning_gradguard.measurement.measurement import Measurement, count_nonfinite

Cause = Literal["nan", "inf", "buffer", "loss", "exception", "square", "spike"]


@dataclass(frozen=True)
class Damage:
    """What is wrong with one step: non-finite elements of its gradients, counted; or something else.

    Attributes:
        nan: number of NaN elements of each affected parameter, by name; 0 where it has infinities only.
        inf: number of infinite elements of each affected parameter, by name.
        counted: whether these are counts; otherwise 1 stands for *some*.
        num_params: how many parameters had a gradient.
        buffers: names of buffers that the forward pass made non-finite, where the gradients are finite.
        loss: what the loss was, where it is NaN and gradients are finite, or are NaN because of it; else ``None``.
        raised: in words, what was not finite when the step ended in an exception.
        fatal: largest element of each gradient whose square overflows in the optimizer, though it is finite, by name.
        spike: in words, a gradient norm or loss far above the usual, where all is finite.
    """

    nan: dict[str, int]
    inf: dict[str, int]
    num_params: int
    buffers: tuple[str, ...] = ()
    loss: float | None = None
    raised: str | None = None
    spike: str | None = None
    counted: bool = True
    fatal: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the affected parameters, in depth order."""
        return tuple(self.nan or self.fatal)

    @property
    def cause(self) -> Cause:
        """``"nan"`` if there is one anywhere, as it is what spreads; but for gradients that are NaN by a NaN loss."""
        if self.loss is not None:
            return "loss"
        if any(self.nan.values()):
            return "nan"
        if self.inf or self.buffers:
            return "inf" if self.inf else "buffer"
        if self.fatal:
            return "square"
        return "exception" if self.raised else "spike"

    @property
    def nonfinite(self) -> bool:
        """Whether the step counts among those that were not finite: its gradients, its loss, or what made it raise."""
        return bool(self.names) or self.loss is not None or self.raised is not None

    def describe(self) -> str:
        """Returns the damage in words: how many parameters, and the first of them with their counts."""
        if self.spike is not None:
            return self.spike
        if self.raised is not None:
            return f"the step ended in an exception: {self.raised}"
        if self.loss is not None:
            by_it = "on one process or more, and gradients by it" if self.nan else "although every gradient is finite"
            return f"the loss is {self.loss} {by_it}"
        if self.fatal:
            shown = [f"'{name}' ({size:.3g})" for name, size in [*self.fatal.items()][:5]]
            return (
                f"the gradient of {', '.join(shown)} is finite and too large to be squared: the optimizer's average of "
                "squares would become infinite, or so large that the weight hardly moves again"
            )
        if self.buffers:
            return f"the forward pass made buffers non-finite: {', '.join(map(repr, self.buffers[:5]))}"
        shown = [f"'{name}' ({self._what(name)})" for name in self.names[:5]]
        rest = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        where = (
            "every parameter is affected, which points at the loss, the forward pass or the input"
            if len(self.names) == self.num_params
            else f"{len(self.names)} of {self.num_params} parameters are affected"
        )
        return f"{', '.join(shown)}{rest}; {where}"

    def _what(self, name: str) -> str:
        if not self.counted:
            return "NaN" if self.nan[name] else "Inf"
        return f"{self.nan[name]} NaN, {self.inf[name]} Inf" if self.nan[name] else f"{self.inf[name]} Inf"


def inspect(measurement: Measurement) -> Damage | None:
    """Looks at a measurement whose total is not finite, element by element.

    Returns:
        The damage; ``None`` if every element is finite and only the norm overflowed.
    """
    layout = measurement.layout
    finite = measurement.norms.isfinite().tolist()  # host sync: a bad step is no quiet step
    counts = torch.zeros(len(finite), 2, dtype=torch.int64, device=measurement.norms.device)
    for index, (grad, fine) in enumerate(zip(measurement.grads, finite, strict=True)):
        if grad is not None and not fine:
            counts[index] = torch.tensor(count_nonfinite(grad), device="cpu")
    counts = layout.sharding.sum(counts).ceil().long()
    nan: dict[str, int] = {}
    inf: dict[str, int] = {}
    for name, (num_nan, num_inf) in zip(layout.names, counts.tolist(), strict=True):
        if num_nan or num_inf:
            nan[name], inf[name] = num_nan, num_inf
    return Damage(nan, inf, sum(measurement.present)) if nan else None
