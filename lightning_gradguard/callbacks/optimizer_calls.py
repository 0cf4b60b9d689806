"""Every step of every optimizer during a fit: unseen ones, closures called again, gradients as they are by then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.harmless.part import Part
from lightning_gradguard.measurement.optimizers import unwrap

Optimizer = torch.optim.Optimizer


class OptimizerCalls:
    """Hears of each step of each optimizer in the process, before and after it, through torch's own hooks.

    It warns, once, of the first optimizer that steps a parameter of the model and was not shown to the pipelines: such
    are stepped inside hooks of the backward pass, through ``self.optimizers(use_pl_optimizer=False)``, and where a
    module calls ``step`` of an optimizer that Lightning does not know. It counts how often an optimizer asks for
    gradients within one step. And it tells when gradients are what the optimizer gets: after the closure, in which
    Lightning calls all hooks, or where there is none when the step begins. A quiet step costs a few look-ups.

    Args:
        steps_parameters: whether an optimizer steps a parameter of the model.
        asked: what was asked for, in words: ``"seen, clipped"``.
        handed: is told of an optimizer whose gradients are final; ``None`` where nobody needs to know.

    Attributes:
        met_unseen: whether an optimizer has stepped unseen.
    """

    def __init__(
        self,
        steps_parameters: Callable[[Optimizer], bool],
        asked: str,
        handed: Callable[[Optimizer], None] | None = None,
    ) -> None:
        self._steps_parameters = steps_parameters
        self._asked = asked
        self._handed = handed
        self._seen: set[int] = set()
        self._strangers: set[int] = set()
        self.met_unseen = False
        self._asked_within: dict[int, int] = {}  # for each optimizer that is stepping, how often it asked for gradients
        self._handles: list[RemovableHandle] = []
        self._part = Part("the look at optimizer steps", "steps that nobody sees are not told of", remove=self.stop)

    def start(self) -> None:
        """Looks at every step from now on."""
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ]

    def stop(self) -> None:
        """Looks no longer; what torch was given is taken back."""
        while self._handles:
            self._handles.pop().remove()

    def saw(self, optimizer: Any) -> int:
        """Notes that an optimizer was shown, with gradients for a step.

        Returns:
            How often it has asked for gradients within the step at hand, this time included.
        """
        for layer in unwrap(optimizer):
            key = id(layer)
            self._seen.add(key)
            if key in self._asked_within:
                self._asked_within[key] += 1
                return self._asked_within[key]
        return 1  # before its step, as under a loss scaler

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if torch.compiler.is_compiling():
            return None
        return self._part.note(self._begin, optimizer, args, kwargs)

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Returns the arguments of the step with a closure that tells when it is through, if somebody wants to know."""
        self._asked_within[id(optimizer)] = 0
        handed = self._handed
        if handed is None:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            handed(optimizer)
            return None

        def telling() -> Any:
            result = closure()
            handed(optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": telling}
        return (args[0], telling, *args[2:]), kwargs

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            self._part.note(self._end, optimizer)

    def _end(self, optimizer: Optimizer) -> None:
        key = id(optimizer)
        self._asked_within.pop(key, None)
        if self.met_unseen or key in self._seen or key in self._strangers:
            return
        if not self._steps_parameters(optimizer):
            self._strangers.add(key)  # of another model: none of our business
            return
        self.met_unseen = True
        rank_zero_warn(
            f"an optimizer ({type(optimizer).__name__}) has stepped parameters of this model where Lightning calls no "
            f"hook: its gradients cannot be {self._asked}. That is so for optimizers that step inside hooks of the "
            "backward pass, that are got by self.optimizers(use_pl_optimizer=False), or that configure_optimizers did "
            "not return. Use self.optimizers(), or GradientPipeline in the training step."
        )


def anything_is_compiled() -> bool:
    """Tells whether ``torch.compile`` was called in this process; where torch does not say, that it was."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    # What torch keeps out of compiled code, as some of its own optimizers, stands there with no backend.
    return frames is not None and any(getattr(frames, "cached_backends", {0: True}).values())


def has_compiled_step(optimizer: Optimizer) -> bool:
    """Tells whether ``optimizer.step`` was put through ``torch.compile``, with the closure that it calls."""
    return hasattr(optimizer.step, "_torchdynamo_orig_callable")
