"""The loss in real units."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.measurement.sharding import local


def true_loss(loss: Tensor, scaler: GradScaler | None) -> Tensor:
    """Returns the loss in real units, detached; Lightning's hook before the backward pass gives it with the scale."""
    scale = scaler._scale if scaler is not None and scaler.is_enabled() else None
    return loss.detach() if scale is None else loss.detach() / scale


def as_signal(loss: Tensor | float, like: Tensor) -> Tensor:
    """The loss as one number of another's device and dtype: NaN if there is one in it.

    A number of the host is filled in on the device, where a copy would make it wait.

    Example:
        >>> as_signal(torch.tensor([1.0, 2.0]), torch.zeros(())).item()
        3.0
    """
    if not isinstance(loss, Tensor):
        return torch.full_like(like, float(loss))
    if type(loss) is Tensor and not loss.dim() and (loss.dtype, loss.device) == (like.dtype, like.device):
        return loss
    loss = local(loss)
    loss = torch.view_as_real(loss) if loss.is_complex() else loss
    return (loss.sum() if loss.dim() else loss).to(like)
