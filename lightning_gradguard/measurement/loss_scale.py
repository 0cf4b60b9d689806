"""The loss scale of mixed precision: true gradients, and whose business an overflow is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState


def unscale_once_(scaler: GradScaler | None, optimizer: torch.optim.Optimizer) -> bool:
    """Brings the gradients of one optimizer into real units, unless that is done already.

    Optimizers that unscale inside ``step`` (fused Adam and its kin) reach the hook with scaled gradients; others were
    unscaled before. Asking the scaler, and not dividing ourselves, keeps its record of overflows right, so that it
    still skips the step and lowers the scale.

    Args:
        scaler: the live scaler, or ``None``.
        optimizer: whose gradients to unscale.

    Returns:
        Whether a live scaler stands behind this step: then an overflow is its business.
    """
    if scaler is None or not scaler.is_enabled():
        return False
    if scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
        scaler.unscale_(optimizer)
    return True


def true_loss(loss: Tensor, scaler: GradScaler | None) -> Tensor:
    """The loss in real units, detached; Lightning's hook before the backward pass hands it out with the scale on it."""
    scale = scaler._scale if scaler is not None and scaler.is_enabled() else None
    return loss.detach() if scale is None else loss.detach() / scale
