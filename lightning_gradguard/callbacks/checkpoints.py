"""No checkpoint with a NaN in it: what is written is looked at, and not only what is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_gradguard.callbacks.stand_in import StandIn
from lightning_gradguard.guard.finite import holding_nan, in_words, nonfinite
from lightning_gradguard.guard.guard import NonFiniteGradientError
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.harmless.part import is_ours


class CheckpointGuard:
    """Stands around what writes a Trainer's checkpoints.

    Weights and buffers are looked at first, and rolled back where there is a snapshot; then each tensor of what is
    about to be written: averages and the state of optimizers with it.

    Args:
        trainer: whose checkpoints.
        module: the model.
        recovery: what rolls back.

    Attributes:
        at_the_file: what stands where a checkpoint is written, whoever asked for it.
        failing: whether an exception is under way: then nothing is raised, and a bad checkpoint is just not written.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, recovery: Recovery) -> None:
        self._trainer = trainer
        self._module = module
        self._recovery = recovery
        self.failing = False
        self.at_the_file = StandIn(trainer.strategy, "save_checkpoint", self._write_if_finite)
        self.stand_ins = [StandIn(trainer, "save_checkpoint", self._save_if_finite), self.at_the_file]

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Looks at every tensor of a checkpoint.

        Raises:
            NonFiniteGradientError: if one is not finite, by name.
        """
        ours = {c.state_key for c in self._trainer.callbacks if is_ours(c)}  # type: ignore[attr-defined]
        buffers = self._recovery.buffers
        bad = nonfinite_in(checkpoint, self._module, buffers.unwatched, ours)
        if self._recovery.together.any(bool(bad), list(self._module.parameters())):
            what = in_words(bad) or "something on another process"
            raise NonFiniteGradientError(
                f"not finite after step {self._trainer.global_step}: {what}: no checkpoint was written. "
                "Go back to the last checkpoint, or use NonFiniteGuard('rollback'), which does so before it writes; "
                "clip gradients or lower the learning rate, so that no update overflows."
            )

    def _save_if_finite(self, save: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if not self._may_save():
            return
        try:
            save(*args, **kwargs)
        except NonFiniteGradientError as bad:
            if self._recovery.roll_back():
                self._say_rolled_back(str(bad).split(": no checkpoint")[0])
                save(*args, **kwargs)
            elif self.failing:
                rank_zero_warn(str(bad))
            else:
                raise

    def _write_if_finite(self, write: Callable[..., None], checkpoint: Any, *args: Any, **kwargs: Any) -> None:
        self.check(checkpoint)
        write(checkpoint, *args, **kwargs)

    def _may_save(self) -> bool:
        spoiled = self._recovery.buffers.not_finite()
        if not self._recovery.has_nonfinite_weights() and not spoiled:
            return True
        what = f"buffers {', '.join(spoiled[:5])}" if spoiled else "weights"
        if self._recovery.roll_back():
            self._say_rolled_back(f"{what} were not finite when a checkpoint was due")
            return True
        message = f"{what} are not finite after step {self._trainer.global_step}: no checkpoint was written"
        if self.failing:
            rank_zero_warn(message)
            return False
        overflow = (
            "The last update overflowed although its gradients were finite: lower the learning rate, clip "
            "gradients, or use NonFiniteGuard('rollback')."
        )
        at_start = self._recovery.broken_at_start
        raise NonFiniteGradientError(
            f"{message}. {self._recovery.remedy_of_nonfinite_weights() if at_start else overflow}"
        )

    def _say_rolled_back(self, what: str) -> None:
        if (nowhere := self._recovery.gets_nowhere) is not None and not self.failing:
            raise NonFiniteGradientError(f"{what}. It was {nowhere}.")
        rank_zero_warn(f"{what}: rolled back before it was written")


def nonfinite_in(
    checkpoint: Mapping[str, Any], module: nn.Module, masks: Collection[str], ours: Collection[str]
) -> tuple[str, ...]:
    """Returns the names of tensors in a checkpoint that are not finite.

    Weights, buffers and the state of optimizers hold no infinity. What else there is (averages under any name, the
    state of callbacks) is searched for NaN; single numbers are left out, since a best score begins at infinity.

    Args:
        checkpoint: what is about to be written.
        module: the model.
        masks: names of buffers that were not finite to begin with.
        ours: names of callbacks of this package: what they keep is their business.
    """
    strict = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    strict |= {name for name, _ in module.named_buffers() if name not in masks}
    known: list[tuple[str, Tensor]] = []
    other: list[tuple[str, Tensor]] = []
    for path, tensor in _tensors(checkpoint, ()):
        section, name = str(path[0]), str(path[1]) if len(path) > 1 else ""
        if (section == "callbacks" and name in ours) or name in masks:
            continue
        is_state = section == "optimizer_states" or name in strict
        if is_state or tensor.dim():
            (known if is_state else other).append((f"{section}[{'.'.join(map(str, path[1:]))!r}]", tensor))
    return (*nonfinite(known), *holding_nan(other))


def _tensors(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, (*path, index))
