"""Finite or not, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.spikes import Spike, SpikeRule, SpikeWatch

Action = Literal["skip", "rollback", "stop", "raise"]


class NonFiniteGradientError(RuntimeError):
    """Training was ended because gradients were not finite; the message names step, optimizer and layers."""


def why_not_droppable(optimizer: torch.optim.Optimizer) -> str | None:
    """Tells why a step of this optimizer cannot be dropped half way; ``None`` where it can.

    LBFGS, and those that step twice in one step (SAM and its kin), ask for gradients again after they have moved the
    weights: dropping the later gradients would leave the weights where they were only meant to look.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        return f"{name} evaluates the loss many times in one step"
    if hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
        return f"{name} steps twice in one step (first_step, second_step)"
    return None


def check_droppable(optimizers: Optimizers) -> None:
    """Refuses optimizers whose step cannot be dropped half way.

    Raises:
        ValueError: names the first of them.
    """
    for optimizer in optimizers.plain:
        if (reason := why_not_droppable(optimizer)) is not None:
            raise ValueError(f"on_nonfinite: {reason}, and a step cannot be dropped half way; pass on_nonfinite=None")


class Guard:
    """Counts bad steps and says what becomes of them.

    Args:
        action: ``"skip"`` drops the step: no weight, momentum or step counter moves. ``"rollback"`` drops it, and
            after some in a row goes back to the last good state. ``"stop"`` drops it and ends training in order.
            ``"raise"`` drops it and raises :class:`NonFiniteGradientError`.
        patience: bad steps in a row after which every action raises, >= 1. 20 lets a rare bad batch pass and
            ends a run that will not recover before it has wasted much.
        loss_scale_floor: with a ``GradScaler``, overflows are its business as long as its scale is above this, > 0.
            1: when the scale does not enlarge gradients any more, halving it again is no cure.
        spikes: what counts as a spike of gradient norm or loss; ``None`` lets finite steps pass.
        drop_nan_loss: whether a step with a loss of NaN is a bad step although all of its gradients are finite, as it
            is where every label is ignored (0/0). A NaN is never meant, so there are no false alarms; ``False`` lets
            such steps through and counts them. An infinite loss is no such step: the gradient of a loss that has
            overflowed, or of a class that is ruled out, may well be right.
        on_device: whether a fused optimizer leaves bad steps out by itself and the host learns of them a little later,
            which spares the host sync of each step. ``None``: where gradients live on a CUDA device and nothing needs
            to know at once (action ``"skip"``, no spikes, no incidents). Then a step whose norm overflows although
            its elements are finite is dropped as well, and elements are not counted.

    Raises:
        TypeError, ValueError: for an unknown action, a patience below 1, a floor that is not positive, and
            ``on_device=True`` with what needs the host.
    """

    def __init__(
        self,
        action: Action = "skip",
        patience: int = 20,
        *,
        loss_scale_floor: float = 1.0,
        spikes: SpikeRule | None = None,
        drop_nan_loss: bool = True,
        on_device: bool | None = None,
    ) -> None:
        if action not in get_args(Action):
            raise ValueError(f"action must be one of {', '.join(map(repr, get_args(Action)))}, got {action!r}")
        if isinstance(patience, bool) or not isinstance(patience, int):
            raise TypeError(f"patience must be an int, got {type(patience).__name__}: {patience!r}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 bad step in a row, got {patience}")
        if not loss_scale_floor > 0:
            raise ValueError(f"loss_scale_floor must be positive, got {loss_scale_floor!r}")
        if not isinstance(spikes, SpikeRule | None):
            raise TypeError(f"spikes must be a SpikeRule or None, got {spikes!r}")
        self.action = action
        self.patience = patience
        self.loss_scale_floor = loss_scale_floor
        if on_device not in (None, True, False):
            raise TypeError(f"on_device must be True, False or None, got {on_device!r}")
        if on_device and (action != "skip" or spikes is not None or not drop_nan_loss):
            needs = f"action {action!r}" if action != "skip" else "spikes" if spikes else "drop_nan_loss=False"
            raise ValueError(f"on_device=True drops steps without asking the host, and {needs} needs it: use None")
        if drop_nan_loss not in (True, False):
            raise TypeError(f"drop_nan_loss must be True or False, got {drop_nan_loss!r}")
        self.spikes = spikes
        self.drop_nan_loss = drop_nan_loss
        self.on_device = on_device if action == "skip" and spikes is None and drop_nan_loss else False
        self.streak = 0
        self._watches = {name: SpikeWatch(spikes) for name in ("gradient norm", "loss")} if spikes is not None else {}

    def find_spike(self, norm: float, loss: float | None) -> str | None:
        """Returns a spike of one of them, in words; ``None`` for an ordinary step, or without a rule."""
        if self.spikes is None:
            return None
        if self.spikes.watch_loss and loss is not None and math.isinf(loss):
            return f"the loss is {loss} although every gradient is finite"
        values = {"gradient norm": norm, "loss": loss if self.spikes.watch_loss else None}
        found: dict[str, Spike] = {}
        for name, value in values.items():
            if value is not None and (spike := self._watches[name].see(value)) is not None:
                found[name] = spike
        return "; ".join(f"{name} {spike}" for name, spike in found.items()) or None

    def leaves_to_scaler(self, loss_scale: float) -> bool:
        """Tells whether an overflow at this loss scale is the scaler's business."""
        return loss_scale > self.loss_scale_floor

    def good_step(self) -> None:
        """Ends a streak of bad steps."""
        self.streak = 0

    def bad_step(self) -> bool:
        """Counts a bad step; tells whether the run must end with an error now."""
        self.streak += 1
        return self.action == "raise" or self.streak >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Returns the streak, and what is usual."""
        return {"streak": self.streak, "usual": {name: watch.state_dict() for name, watch in self._watches.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.streak = int(state["streak"])
        for name, watch in self._watches.items():
            if name in state["usual"]:
                watch.load_state_dict(state["usual"][name])
