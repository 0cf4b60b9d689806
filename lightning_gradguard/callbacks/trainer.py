"""What Lightning's strategies change for us, and what is refused under them when fit starts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gradguard.guard.guard import why_not_droppable

if TYPE_CHECKING:
    from lightning_gradguard.callbacks.session import Plan


def outer_module(trainer: pl.Trainer, module: pl.LightningModule) -> nn.Module:
    """Where it can be read how parameters are spread over processes: the wrapper of FSDP or DDP, else the module.

    Parameters have the same names in all of them; what the wrapper flattened or ignores, it alone knows.
    """
    model = trainer.strategy.model
    wraps = isinstance(model, DistributedDataParallel) or hasattr(model, "_fsdp_wrapped_module")
    return model if wraps and model is not None else module


def is_deepspeed(trainer: pl.Trainer) -> bool:
    """Tells whether DeepSpeed's engine, and not the optimizer, holds the gradients."""
    return _is_deepspeed(type(trainer.strategy))


@functools.cache  # asked after each step
def _is_deepspeed(strategy: type) -> bool:
    # By name, since lightning.pytorch and pytorch_lightning have a class each.
    return any(cls.__name__ == "DeepSpeedStrategy" for cls in strategy.__mro__)


def steps_parameters_of(module: nn.Module, optimizer: Optimizer) -> bool:
    """Tells whether an optimizer steps a parameter of a module."""
    own = {id(parameter) for parameter in module.parameters()}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def steps_now(trainer: pl.Trainer) -> bool:
    """Tells whether the hook before the optimizer step is followed by a step.

    Strategies that accumulate gradients themselves (DeepSpeed's flag) have Lightning call it for every batch.
    """
    return not (trainer.strategy.handles_gradient_accumulation and trainer.fit_loop._should_accumulate())


def steps_without_backward(trainer: pl.Trainer) -> bool:
    """Tells whether it is the last epoch of weight averaging, for the statistics of normalization layers alone.

    Its steps have no backward pass: the gradients are old ones.
    """
    return bool(getattr(trainer.fit_loop, "_skip_backward", False))


def changed_afterwards(trainer: pl.Trainer, module: pl.LightningModule, ours: Sequence[object]) -> list[str]:
    """Who may change gradients between our hook and the optimizer's step, in words; empty where nobody does.

    Lightning calls the callbacks first, then the module's own ``on_before_optimizer_step``, then
    ``configure_gradient_clipping``, which clips if the Trainer was told to.

    Args:
        trainer: the Trainer.
        module: the model.
        ours: our own callbacks, which share one step.
    """
    found = []
    if trainer.gradient_clip_val:
        found.append(f"Trainer(gradient_clip_val={trainer.gradient_clip_val})")
    if module.automatic_optimization and _is_users("configure_gradient_clipping", module):
        found.append(f"{type(module).__name__}.configure_gradient_clipping")
    if _is_users("on_before_optimizer_step", module):
        found.append(f"{type(module).__name__}.on_before_optimizer_step")
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    last = max((index for index, callback in enumerate(callbacks) if callback in ours), default=-1)
    for callback in callbacks[last + 1 :]:
        if _is_users("on_before_optimizer_step", callback):
            found.append(f"{type(callback).__name__}.on_before_optimizer_step")
    return found


def _is_users(hook: str, owner: object) -> bool:
    """Whether a hook of a module or callback is neither Lightning's nor ours; by name, as Lightning is two packages."""
    return getattr(type(owner), hook).__module__.partition(".")[0] not in (
        "lightning",
        "pytorch_lightning",
        "lightning_gradguard",
    )


def refuse_what_cannot_work(trainer: pl.Trainer, plan: Plan, optimizers: Sequence[Optimizer]) -> None:
    """Raises when fit starts, before a weight has moved, if what was asked for cannot be kept.

    Raises:
        MisconfigurationException: says what, why, and what to do instead.
    """
    if plan.clip is not None and not plan.dry_run and trainer.gradient_clip_val:
        who = plan.roles["tame"]
        raise MisconfigurationException(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) and {who} would both clip: remove "
            f"gradient_clip_val from the Trainer, or the policy from {who}. If you did not set it, the library that "
            "makes the Trainer did (GluonTS sets 10.0): pass gradient_clip_val=None among the arguments that it hands "
            "on to the Trainer, or set trainer.gradient_clip_val = None before fit."
        )
    if is_deepspeed(trainer) and plan.acting:
        names = " and ".join(sorted({plan.roles[role] for role in plan.acting}))
        raise MisconfigurationException(
            f"{names}: under DeepSpeed the engine holds the gradients, in its own flat buffers, and steps by itself; "
            "nothing outside it can clip or skip. Set gradient_clip_val on the Trainer, which DeepSpeed carries out, "
            "and keep GradientNormMonitor, which logs the engine's global norm."
        )
    for index, optimizer in enumerate(optimizers if "survive" in plan.roles else ()):
        if (reason := why_not_droppable(optimizer)) is not None:
            raise MisconfigurationException(
                f"{plan.roles['survive']}: optimizer {index}: {reason}, and has moved the weights by the time a "
                "gradient is not finite: a step cannot be dropped half way. Remove the guard, or use another optimizer."
            )


def log_engine_norm(trainer: pl.Trainer) -> None:
    """Passes on the one norm that DeepSpeed's engine tells: over all parameters, of its last step."""
    engine: Any = trainer.strategy.model
    norm = engine.get_global_grad_norm()
    if norm is None:  # before its first step
        return
    trainer.callback_metrics["grad_norm_total"] = torch.as_tensor(norm, dtype=torch.float32)
    if trainer._logger_connector.should_update_logs:
        for logger in trainer.loggers:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            logger.log_metrics({"grad_norm_total/pre_clip": float(norm)}, step=step)


class StepState:
    """What the Trainer keeps of a step while it is under way, taken before it.

    Args:
        trainer: whose step.
        module: the model.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer = trainer
        self._module = module
        self._progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        self._ready = self._progress.total.ready
        self._hook = module._current_fx_name

    def put_back(self) -> None:
        """Ends a step that has raised as if it had been dropped for its gradients: it counts as one that was taken."""
        self._module._current_fx_name = self._hook
        if self._progress.total.ready > self._ready:
            self._progress.increment_completed()
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            for optimizer in self._trainer.optimizers:  # it may have been unscaled, and never be stepped
                scaler._per_optimizer_states.pop(id(optimizer), None)
