"""Lets a LightningModule's ``training_step`` run without a Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.incident.trace import is_finite

_SILENT = ("log", "log_dict", "print")


class Reached(Exception):
    """Ends a manual training step where its optimizer would have applied the bad gradients."""


class _Trainer:
    """What a training step may ask its Trainer, as it was at the incident."""

    def __init__(self, config: Mapping[str, Any], optimizers: list[_Optimizer]) -> None:
        for name in ("max_epochs", "max_steps", "num_training_batches", "estimated_stepping_batches"):
            if config.get(name) is not None:
                setattr(self, name, config[name])
        self.accumulate_grad_batches = config.get("accumulate_grad_batches") or 1
        self.precision = config.get("precision")
        self.current_epoch = config.get("epoch", 0)
        self.global_step = config.get("global_step", 0)
        self.global_rank = self.local_rank = self.node_rank = 0
        self.world_size = 1
        self.is_global_zero = True
        self.num_nodes = self.num_devices = 1
        self.state = SimpleNamespace(fn="fit", status="running", stage="train")  # Lightning's own compare with strings
        self.training, self.sanity_checking, self.validating, self.testing = True, False, False, False
        self.logger = None
        self.loggers: list[Any] = []
        self.callbacks: list[Any] = []
        self.callback_metrics: dict[str, Tensor] = {}
        self.optimizers = optimizers

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"training_step asked for trainer.{name}, and a replay has no Trainer; pass step=... instead"
        )


class _Optimizer:
    """Stands for one optimizer in a manual training step: never steps, and says when the incident's would have."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, is_incident: bool) -> None:
        self._module = module
        self.optimizer = optimizer
        self._is_incident = is_incident

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> None:
        if closure is not None:
            closure()
        bad = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._is_incident and any(not is_finite(p.grad) for p in bad):
            raise Reached

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        self._module.toggle_optimizer(self)  # type: ignore[operator]
        yield
        self._module.untoggle_optimizer(self)  # type: ignore[operator]


class _Scheduler:
    def step(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the learning rate has no part in the gradients of one step."""


@contextmanager
def without_trainer(
    module: nn.Module, config: Mapping[str, Any], optimizer_index: int, backward: Callable[[Tensor], None]
) -> Iterator[None]:
    """Within it, ``module.training_step`` may log, ask for its epoch, and, if manual, run its backward passes.

    Args:
        module: a LightningModule, or any module with a ``training_step``.
        config: epoch and global step of the incident.
        optimizer_index: the optimizer whose step was bad.
        backward: called for ``manual_backward``.
    """
    kept = dict(module.__dict__)
    for name in _SILENT:
        if callable(getattr(module, name, None)):
            module.__dict__[name] = _silent
    if "_trainer" in kept:
        optimizers: list[_Optimizer] = []
        module.__dict__["_trainer"] = _Trainer(config, optimizers)  # configure_optimizers may ask it for the length

        def ask_for_optimizers(use_pl_optimizer: bool = True) -> Any:
            if not optimizers:
                made = _flat_optimizers(module.configure_optimizers())  # type: ignore[operator]
                optimizers.extend(_Optimizer(module, one, i == optimizer_index) for i, one in enumerate(made))
            return optimizers[0] if len(optimizers) == 1 else optimizers

        if is_manual(module):
            ask_for_optimizers()
        module.__dict__["optimizers"] = ask_for_optimizers
        module.__dict__["lr_schedulers"] = _Scheduler
        module.__dict__["manual_backward"] = lambda loss, *args, **kwargs: backward(loss)
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(kept)


def call_training_step(module: Any, batch: Any, index: int) -> Any:
    """``module.training_step``, with the batch index if it takes one."""
    parameters = inspect.signature(module.training_step).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return module.training_step(batch, index) if len(positional) > 1 else module.training_step(batch)


def loss_of(output: Any) -> Tensor | None:
    """Returns the loss in what a training step returned; ``None`` for a step that sat this batch out by returning none.

    Raises:
        TypeError: if there is something else.
    """
    if output is None:
        return None
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step returned {type(loss).__name__}, not a loss")
    return loss


def is_manual(module: nn.Module) -> bool:
    """Tells whether the module runs its own backward passes."""
    return getattr(module, "automatic_optimization", True) is False


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log``."""


def _flat_optimizers(configured: Any) -> list[torch.optim.Optimizer]:
    """Returns the optimizers in any of the forms ``configure_optimizers`` may return, in the Trainer's order."""
    if isinstance(configured, torch.optim.Optimizer):
        return [configured]
    if isinstance(configured, Mapping):
        return [configured["optimizer"]]
    if isinstance(configured, list | tuple):
        if len(configured) == 2 and isinstance(configured[0], list | tuple):
            configured = configured[0]
        return [one for item in configured for one in _flat_optimizers(item)]
    return []
