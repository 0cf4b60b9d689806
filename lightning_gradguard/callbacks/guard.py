"""Survive: non-finite gradients never reach a weight."""

from __future__ import annotations

import os

from lightning_gradguard.arguments import check_count, warn_without_effect
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.session import Plan
from lightning_gradguard.callbacks.survival import GuardOptions
from lightning_gradguard.guard.guard import Action
from lightning_gradguard.incident.bundle import IncidentFolder
from lightning_gradguard.spikes import SpikeRule


class NonFiniteGuard(GradientCallback):
    """Catches NaN and infinite gradients before they reach a weight, names the layers, acts, and can save the step.

    A dropped step leaves nothing behind: no weight, momentum, weight decay or step counter moves, and the buffers
    (running statistics of normalization layers) go back to what they were before its batches. Learning rate schedules
    go on, as Lightning's do. No checkpoint is written with a NaN in it while the guard is on.

    Under a loss scaler (``16-mixed``) an overflow is routine and left to the scaler, counted, shown, and not acted
    upon, unless it goes on at a scale at or below ``loss_scale_floor``.

    Args:
        action: ``"skip"`` drops the step: every ``p.grad`` of that optimizer becomes ``None``. ``"rollback"`` drops it
            and, after ``rollback_after`` in a row or at once if a parameter is not finite, goes back to the last
            snapshot of weights, buffers and optimizer state. ``"stop"`` drops it and ends training in order, once
            ``min_epochs`` and ``min_steps`` are reached. ``"raise"`` drops it and raises ``NonFiniteGradientError``.
        patience: bad steps in a row after which every action raises, >= 1. 20 lets a rare bad batch pass, and ends a
            run that will not recover before it has wasted much.
        incident_dir: where bad steps are saved for ``python -m lightning_gradguard replay``; ``None`` saves nothing.
            Armed it costs some 20 µs a batch.
        rollback_after: bad steps in a row after which ``"rollback"`` goes back, >= 1.
        snapshot_every_n_steps: good steps between two snapshots, >= 1. A snapshot takes the memory of the parameters
            once more, and of the optimizer's state: with Adam three times the parameters.
        hold_lr_on_skip: whether schedulers that step with every batch wait when their optimizer's step was dropped, by
            the guard or by the loss scaler. Not under manual optimization, where you step them yourself.
        spikes: what counts as a spike of gradient norm or loss, and is dealt with as ``action`` has it; ``None``: off.
        drop_nan_loss: whether a step with a loss of NaN is a bad step although all of its gradients are finite, as it
            is where every label is ignored (0/0); ``False`` lets such steps through, announced once and counted in the
            records' ``nonfinite_total``. An infinite loss is none: its gradients may well be right.
        max_incidents: how many bad steps of a fit to save, the first ones; bundles of earlier runs stay beside them.
        max_bytes: how much they may take on the disk; what does not fit is left out, and the report says so.
        loss_scale_floor: the scale down to which an overflow under a loss scaler is left to the scaler, > 0.
        on_device: whether a fused optimizer leaves bad steps out by itself, through ``found_inf``, and the host learns
            of them a few steps later, which spares the host sync of each step. ``None``: on CUDA, with
            ``action="skip"``, a fused optimizer without a loss scaler, and none of incidents, spikes, sharding and
            ``hold_lr_on_skip``. A norm that overflows although all elements are finite then drops the step, too.
        joint: whether the Trainer's optimizers are taken as one, because they step one model together (Muon for
            matrices, AdamW for the rest): one norm, one decision, one record; a bad gradient in one drops the steps of
            all. Not for a GAN, whose two pull against each other. It holds for all roles on a Trainer.

    Raises:
        ValueError, TypeError: for bad arguments.
        MisconfigurationException: when fit starts, for optimizers whose step cannot be dropped half way (LBFGS, SAM).

    Example:
        >>> guard = NonFiniteGuard(action="rollback", incident_dir="incidents")
    """

    def __init__(
        self,
        action: Action = "skip",
        patience: int = 20,
        incident_dir: str | os.PathLike[str] | None = None,
        rollback_after: int = 3,
        snapshot_every_n_steps: int = 100,
        hold_lr_on_skip: bool = False,
        spikes: SpikeRule | None = None,
        max_incidents: int = 3,
        max_bytes: int = 10 * 2**30,
        loss_scale_floor: float = 1.0,
        on_device: bool | None = None,
        joint: bool = False,
        drop_nan_loss: bool = True,
    ) -> None:
        self.joint = joint
        check_count(rollback_after, "rollback_after")
        check_count(snapshot_every_n_steps, "snapshot_every_n_steps")
        IncidentFolder(incident_dir or ".", max_incidents=max_incidents, max_bytes=max_bytes)  # checks the limits
        rollbacks = {"rollback_after": (rollback_after, 3), "snapshot_every_n_steps": (snapshot_every_n_steps, 100)}
        if action != "rollback":
            warn_without_effect("NonFiniteGuard", f"action={action!r}", rollbacks)
        limits = {"max_incidents": (max_incidents, 3), "max_bytes": (max_bytes, 10 * 2**30)}
        warn_without_effect("NonFiniteGuard", "incident_dir=None", limits if incident_dir is None else {})
        self.options = GuardOptions(
            action=action,
            patience=patience,
            incident_dir=incident_dir,
            max_incidents=max_incidents,
            max_bytes=max_bytes,
            rollback_after=rollback_after,
            snapshot_every_n_steps=snapshot_every_n_steps,
            hold_lr_on_skip=hold_lr_on_skip,
            spikes=spikes,
            drop_nan_loss=drop_nan_loss,
            loss_scale_floor=loss_scale_floor,
            on_device=on_device,
        )
        self.options.make_guard()  # checks the others

    def __repr__(self) -> str:
        return repr(self.options).replace("GuardOptions", "NonFiniteGuard", 1)

    def _contribute(self, plan: Plan) -> None:
        plan.joint = plan.joint or self.joint
        plan.take("survive")
        plan.guard = self.options
