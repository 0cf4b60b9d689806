"""The loss in real units."""

from __future__ import annotations

from torch import Tensor
from torch.amp.grad_scaler import GradScaler


def true_loss(loss: Tensor, scaler: GradScaler | None) -> Tensor:
    """Returns the loss in real units, detached; Lightning's hook before the backward pass gives it with the scale."""
    scale = scaler._scale if scaler is not None and scaler.is_enabled() else None
    return loss.detach() if scale is None else loss.detach() / scale
