"""Steps that end in an exception, which may be a NaN by another name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_gradguard.callbacks.stand_in import StandIn
from lightning_gradguard.callbacks.trainer import StepState
from lightning_gradguard.guard.guard import NonFiniteGradientError
from lightning_gradguard.guard.raised import find_nonfinite, may_be_a_nan

# Told what was not finite and the error; returns why the step cannot be dropped, or None where it was.
Drop = Callable[[str, Exception], str | None]


class RaisedSteps:
    """Stands around a Trainer's training step, backward pass and optimizer step.

    An exception there is looked at: where something is not finite, the step is dropped and the training goes on; where
    it cannot, the exception goes on its way with a note. Any other exception passes untouched.

    Args:
        trainer: whose steps.
        module: the model.
        drop: drops the step.
        more: what else to look at, by name.
        was_dropped: whether an error is that of an optimizer whose step was dropped already, for want of gradients.
        look_again: looks for a NaN that no variable holds any more, where that can be done.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        drop: Drop,
        more: Callable[[], Iterator[tuple[str, Tensor]]],
        was_dropped: Callable[[Exception], bool],
        look_again: Callable[[Exception], str | None],
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._drop = drop
        self._more = more
        self._was_dropped = was_dropped
        self._look_again = look_again
        self.batch: Any = None
        loop = trainer.fit_loop.epoch_loop
        self.stand_ins = [
            StandIn(loop.automatic_optimization, "run", self._run),
            StandIn(loop.manual_optimization, "run", self._run),
        ]

    def _run(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = StepState(self._trainer, self._module)
        try:
            return run(*args, **kwargs)
        except Exception as error:
            if self._was_dropped(error):
                before.put_back()
                return {}
            found = self._look(error) if may_be_a_nan(error) else ()
            if not found:
                raise
            if (why_not := self._drop_or_not("; ".join(found), error)) is not None:
                error.add_note(f"lightning_gradguard: {why_not}")
                raise
            before.put_back()
        return {}

    def _look(self, error: Exception) -> tuple[str, ...]:
        """What was not finite; nothing where that cannot be found out: the error at hand is not to be hidden."""
        with suppress(Exception):
            if found := find_nonfinite(error, self.batch, self._state()):
                return found
            if (unnamed := self._look_again(error)) is not None:
                return (unnamed,)
        return ()

    def _drop_or_not(self, what: str, error: Exception) -> str | None:
        """Drops the step, or tells why it is not dropped; the error that is under way is the one that is raised."""
        found = f"not finite when this was raised: {what}."
        try:
            why_not = self._drop(what, error)
        except NonFiniteGradientError as end:  # the guard has had enough
            return str(end)
        return why_not and f"{found} {why_not}"

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and gradients, and what else is to be looked at."""
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad or bool(parameter.isnan().any()):  # one that is frozen may be a mask
                yield f"the weight {name!r}", parameter
            if parameter.grad is not None:
                yield f"the gradient of {name!r}", parameter.grad
        yield from self._more()
