"""All that a step is judged by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Signals:
    """All that a step is judged by: numbers of shape ``[]`` on the device, or floats once they are on the host.

    Attributes:
        total: norm of the whole gradient.
        coefficient: the smallest by which gradients are scaled; 0 or 1 where they are clipped in another way, or not.
        buffers: sum over the buffers that the forward pass may write; ``None`` where there are none.
        loss: of the step; ``None`` where it is not known.
    """

    total: Any
    coefficient: Any
    buffers: Any = None
    loss: Any = None

    def together(self) -> Tensor:
        """One vector of those that are there, in the order above."""
        return torch.stack([value for value in vars(self).values() if value is not None])

    def on_host(self, together: Tensor) -> Signals:
        """The same as floats, by one read of the vector."""
        numbers = iter(together.tolist())  # the one host sync of a quiet step: skip must know before optimizer.step
        return Signals(*[None if value is None else next(numbers) for value in vars(self).values()])


assert [field.name for field in fields(Signals)][:2] == ["total", "coefficient"]  # what a record reads of the vector
