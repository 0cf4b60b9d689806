"""How often an optimizer asks for gradients within one step: one that asks again has moved weights in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.harmless.part import tell


class ClosureCalls:
    """Hears from optimizers when a step of theirs begins and ends, and counts the closures that run within it.

    Args:
        optimizers: that are handed their gradients in a loop of the user's own.
        guarded: whether bad steps are to be dropped, which cannot be done half way.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        >>> calls = ClosureCalls([optimizer], guarded=True)
        >>> optimizer.step(calls.count)  # one closure for one step
        >>> calls.leave()
    """

    def __init__(self, optimizers: Sequence[Optimizer], *, guarded: bool) -> None:
        self._guarded = guarded
        self._told = False
        self._within: dict[int, int] = {}  # for each optimizer that is stepping, how often it has asked
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._begin))
            self._handles.append(optimizer.register_step_post_hook(self._end))

    def leave(self) -> None:
        """Takes the hooks off the optimizers."""
        while self._handles:
            self._handles.pop().remove()

    def count(self) -> None:
        """Counts one call, for every optimizer that is stepping just now.

        Raises:
            ValueError: where a guard is asked a second time within one step.
        """
        for key in self._within:
            self._within[key] += 1
        if any(times > 1 for times in self._within.values()):
            self._meet_second()

    def _meet_second(self) -> None:
        again = "the optimizer asks for gradients several times within one step (its closure was called again)"
        if self._guarded:
            raise ValueError(
                f"on_nonfinite: {again}, and has moved the weights by now: a step cannot be dropped half way; "
                "pass on_nonfinite=None, or use another optimizer"
            )
        if not self._told:
            tell(f"GradientPipeline: {again}: each of them is clipped and counted as a step of its own.")
        self._told = True

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._within[id(optimizer)] = 0

    def _end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._within.pop(id(optimizer), None)
