"""Optimizers that step where Lightning calls no hook: their gradients are neither seen nor clipped nor guarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle


class UnseenSteps:
    """Warns, once, of the first optimizer that steps a parameter of the model and was not shown to the pipelines.

    Torch calls a hook after every step of every optimizer in the process; this one compares two numbers. Optimizers are
    stepped unseen inside hooks of the backward pass, through ``self.optimizers(use_pl_optimizer=False)``, and where a
    module calls ``step`` of an optimizer that Lightning does not know.

    Args:
        steps_parameters: whether an optimizer steps a parameter of the model.
        asked: what was asked for, in words: ``"seen, clipped"``.
    """

    def __init__(self, steps_parameters: Callable[[torch.optim.Optimizer], bool], asked: str) -> None:
        self._steps_parameters = steps_parameters
        self._asked = asked
        self._seen: set[int] = set()
        self._strangers: set[int] = set()
        self._handle: RemovableHandle | None = None

    def start(self) -> None:
        """Looks at every step from now on."""
        if self._handle is None:
            self._handle = register_optimizer_step_post_hook(self._after_step)

    def stop(self) -> None:
        """Looks no longer; what torch was given is taken back."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def saw(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes that an optimizer was shown and is about to step."""
        self._seen.add(id(optimizer))

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        key = id(optimizer)
        if key in self._seen or key in self._strangers:
            return
        if not self._steps_parameters(optimizer):
            self._strangers.add(key)  # of another model: none of our business
            return
        self.stop()
        rank_zero_warn(
            f"an optimizer ({type(optimizer).__name__}) has stepped parameters of this model where Lightning calls no "
            f"hook: its gradients cannot be {self._asked}. That is so for optimizers that step inside hooks of the "
            "backward pass, that are got by self.optimizers(use_pl_optimizer=False), or that configure_optimizers did "
            "not return. Use self.optimizers(), or GradientPipeline in the training step."
        )
