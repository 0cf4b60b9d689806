"""Survive: non-finite gradients never reach a weight."""

from __future__ import annotations

from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.guard import Action, Guard


class NonFiniteGuard(GradientCallback):
    """Catches NaN and infinite gradients before they reach a weight, names the layers, and acts.

    Under a loss scaler (``16-mixed``) an overflow is routine and left to the scaler: counted, shown, not acted upon.

    Args:
        action: ``"skip"`` drops the step: every ``p.grad`` of that optimizer becomes ``None``, so no weight,
            momentum, weight decay or step counter moves. ``"stop"`` drops it and ends training in order, once
            ``min_epochs`` and ``min_steps`` are reached. ``"raise"`` drops it and raises ``NonFiniteGradientError``.
        patience: bad steps in a row after which ``"skip"`` and ``"stop"`` raise too, >= 1. 20 lets a rare bad batch
            pass, and ends a run that will not recover before it has wasted much.

    Raises:
        ValueError, TypeError: for bad arguments.

    Example:
        >>> guard = NonFiniteGuard(action="skip", patience=20)
    """

    def __init__(self, action: Action = "skip", patience: int = 20) -> None:
        Guard(action, patience)  # checks the arguments
        self.action = action
        self.patience = patience

    def _contribute(self, plan: Plan) -> None:
        plan.take("survive")
        plan.on_nonfinite, plan.patience = self.action, self.patience
