"""What a guard puts back after a bad step: buffers always, the last good state when it is asked to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_gradguard.arguments import check_count
from lightning_gradguard.guard.buffers import Buffers
from lightning_gradguard.guard.finite import State, in_words, nonfinite, nonfinite_statistics
from lightning_gradguard.guard.snapshot import Snapshot
from lightning_gradguard.measurement.together import Together

# So often to one state before the run ends: chance has been given a chance, and nothing else changes between them.
_MAX_ROLLBACKS = 5
# So many good steps after going back, and a snapshot of one of them, are progress; patience is as long.
_GOOD_STRETCH = 20
MEND_BEFORE_THE_START = "No step can mend that: start from another checkpoint, or from fresh weights."


def with_inner(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Optimizers, each with the one inside of it that holds its state: ZeroRedundancyOptimizer's, for its own shard."""
    found: list[torch.optim.Optimizer] = []
    for optimizer in optimizers:
        inner = getattr(optimizer, "optim", None)
        found += [optimizer, inner] if isinstance(inner, torch.optim.Optimizer) else [optimizer]
    return found


class Recovery:
    """One for all optimizers of a module, since they share its buffers and may share its damage.

    Args:
        module: the model.
        optimizers: all of them.
        rollback: whether to keep snapshots to go back to.
        rollback_after: bad steps in a row after which to go back, >= 1. 3: a single bad batch is just dropped, while
            three in a row say that the weights are the cause. A NaN in a parameter goes back at once.
        snapshot_every_n_steps: good steps between two snapshots, >= 1. 100: what a rollback loses stays small beside
            an epoch, and copying the state costs a hundredth of a step or so.
        averages: averaged models that are kept beside it, and go back with it.
        together: the processes that share the model; found out from it if not given.

    Attributes:
        started: whether a first good state was taken.
        together: the processes that share the model.
        tells_by_gradients: whether a NaN loss makes gradients NaN, so that processes hear of it when they reduce them.
        loss_in_gradients: the loss of the step at hand, where that is so.
        broken_at_start: what was not finite before the first step, by name: nothing here can mend it.

    Raises:
        ValueError, TypeError: for counts that are not ints of at least 1.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        rollback: bool = False,
        rollback_after: int = 3,
        snapshot_every_n_steps: int = 100,
        averages: Sequence[nn.Module] = (),
        together: Together | None = None,
    ) -> None:
        check_count(rollback_after, "rollback_after")
        check_count(snapshot_every_n_steps, "snapshot_every_n_steps")
        self.together = Together(module) if together is None else together
        self.buffers = Buffers(module)
        self.snapshot = Snapshot(module, with_inner(optimizers), averages) if rollback else None
        self._averages = averages
        self.rollback_after = rollback_after
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self._module = module
        self._optimizers = with_inner(optimizers)
        self.tells_by_gradients = False
        self.loss_in_gradients: Tensor | None = None
        self.broken_at_start: tuple[str, ...] = ()
        self._state = State(module, self._optimizers)
        self._since_snapshot = 0
        self.started = False
        self._told_of_broken_state = False
        self._rollbacks = 0  # to one state, without a good stretch between them
        self._since_rollback = 1  # good steps
        self._broke = ""

    def follow(self, before: Sequence[torch.optim.Optimizer], now: Sequence[torch.optim.Optimizer]) -> None:
        """Goes on with other optimizers in the place of some, or with changed parameters.

        The next good state is taken at once: a snapshot of parameters that are gone is of no use.
        """
        left = with_inner(before)
        self._optimizers = [one for one in self._optimizers if not any(one is gone for gone in left)] + with_inner(now)
        buffers = Buffers(self._module)
        if buffers.names != self.buffers.names:
            self.buffers = buffers
        self._state = State(self._module, self._optimizers)
        if self.snapshot is not None:
            self.snapshot = Snapshot(self._module, self._optimizers, self._averages)
        self.started = False

    def start(self) -> None:
        """Takes the present state as the first good one: at the first step, or after a checkpoint was loaded.

        Says so, by name, if it is none.
        """
        self.started = True
        self.buffers.keep()
        statistics = nonfinite_statistics(self._module)
        self.broken_at_start = (*self._state.weights(), *self._state.moments(), *statistics)
        if self.broken_at_start:
            warnings.warn(
                f"not finite before the first step: {in_words(self.broken_at_start)}. {MEND_BEFORE_THE_START}",
                stacklevel=2,
            )
        self._take_snapshot(0, self.broken_at_start)

    def _take_snapshot(self, step: int, broken: Sequence[str]) -> None:
        """Takes one of a state that is finite throughout, on every process."""
        self._since_snapshot = 0
        if self.snapshot is None:
            return
        if not self.together.any(bool(broken), self._params()):
            self.snapshot.take(step)
        elif self.started and not self._told_of_broken_state and not self.broken_at_start:
            self._told_of_broken_state = True
            what = in_words(broken) or "something on another process"
            kept = f"rollbacks go to step {self.snapshot.step}" if self.snapshot.step is not None else "there is none"
            warnings.warn(f"no snapshot was taken at step {step}: not finite is {what}; {kept}", stacklevel=2)

    def begin_step(self) -> None:
        """Starts at the first step, if nobody did; later where its forward pass has left a buffer not finite."""
        if not self.started and not self.together.any(bool(self.buffers.not_finite()), self._params()):
            self.start()

    def good_step(self, step: int) -> None:
        """Takes note of a step whose gradients are fine; with them the weights that gave them, not yet updated."""
        if self.buffers.names:
            self.buffers.keep()
        if self.snapshot is None:
            return
        self._since_snapshot += 1
        self._since_rollback += 1
        if self._since_snapshot >= self.snapshot_every_n_steps:
            averages = nonfinite((f"average of {n!r}", p) for a in self._averages for n, p in a.named_parameters())
            broken = (*self._state.weights(), *self._state.moments(), *self.buffers.not_finite(), *averages)
            self._take_snapshot(step, broken)
            if self._since_rollback >= _GOOD_STRETCH and self.snapshot.step == step:
                self._rollbacks = 0

    def overflow_step(self) -> None:
        """Takes note of a step that the loss scaler drops: its forward pass counts, unless a buffer is not finite."""
        self.buffers.restore_() if self.buffers.not_finite() else self.buffers.keep()

    def bad_step(self, streak: int) -> bool:
        """Puts the buffers back, and after enough bad steps everything; tells whether it did the latter.

        Args:
            streak: bad steps in a row, this one included.
        """
        self.buffers.restore_()
        if self.snapshot is None or (streak % self.rollback_after and not self.has_nonfinite_weights()):
            return False
        return self.roll_back()

    def roll_back(self) -> bool:
        """Goes back to the last snapshot; tells whether there was one."""
        if self.snapshot is None or self.snapshot.step is None:
            return False
        broken = self._state.weights()
        self._broke = (
            f"weights that became not finite: {in_words(broken)}" if broken else "gradients, of finite weights"
        )
        self.snapshot.restore_()
        self.buffers.keep()
        self._rollbacks += self._since_rollback > 0  # patience counts those that follow each other
        self._since_snapshot = self._since_rollback = 0
        return True

    @property
    def gets_nowhere(self) -> str | None:
        """Why going back does not help, in words; ``None`` as long as it may."""
        if self.snapshot is None or self._rollbacks < _MAX_ROLLBACKS:
            return None
        return (
            f"rolled back {self._rollbacks} times to the state of step {self.snapshot.step} without a good stretch "
            f"between: what keeps breaking is {self._broke}. The same steps would break again: lower the learning "
            "rate, clip gradients, use a wider dtype or a larger eps"
        )

    def has_nonfinite_weights(self) -> bool:
        """Whether a parameter is not finite, on any process: then dropping steps cannot help. Reads the host."""
        return self.together.any(bool(self._state.weights()), self._params())

    def remedy_of_nonfinite_weights(self) -> str:
        """What can be done about weights that are not finite, in a sentence, given what is at work already."""
        if self.broken_at_start:
            return f"Before the first step {in_words(self.broken_at_start)} was not finite: {MEND_BEFORE_THE_START}"
        names = in_words(self._state.weights()) or "one on another process"
        instead = "go back to a checkpoint" if self.snapshot is not None else "use rollback, or go back to a checkpoint"
        return f"A parameter is not finite, so dropping steps cannot help: {instead} ({names})."

    def _params(self) -> list[Tensor]:
        return [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]
