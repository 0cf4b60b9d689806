"""What a guard puts back after a bad step: buffers always, the last good state when it is asked to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_gradguard.arguments import check_count
from lightning_gradguard.guard.buffers import Buffers
from lightning_gradguard.guard.snapshot import Snapshot
from lightning_gradguard.measurement.sharding import any_process, local


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

    Raises:
        ValueError, TypeError: for counts that are not ints of at least 1.

    Attributes:
        buffers: of the module.
        snapshot: the last good state; ``None`` without rollback.
        started: whether a first good state is known.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        rollback: bool = False,
        rollback_after: int = 3,
        snapshot_every_n_steps: int = 100,
    ) -> None:
        check_count(rollback_after, "rollback_after")
        check_count(snapshot_every_n_steps, "snapshot_every_n_steps")
        self.buffers = Buffers(module)
        self.snapshot = Snapshot(module, optimizers) if rollback else None
        self.rollback_after = rollback_after
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self._module = module
        self._optimizers = list(optimizers)
        self._since_snapshot = 0
        self.started = False

    def follow(self, before: Sequence[torch.optim.Optimizer], now: Sequence[torch.optim.Optimizer]) -> None:
        """Goes on with other optimizers in the place of some, or with changed parameters.

        The next good state is taken at once: a snapshot of parameters that are gone is of no use.
        """
        self._optimizers = [one for one in self._optimizers if not any(one is gone for gone in before)] + [*now]
        # The good values known of the same buffers stay: the present ones may be those of a bad step.
        buffers = Buffers(self._module)
        if buffers.names != self.buffers.names:
            self.buffers = buffers
        if self.snapshot is not None:
            self.snapshot = Snapshot(self._module, self._optimizers)
        self.started = False

    def start(self) -> None:
        """Takes the present state as the first good one: at the first step, or after a checkpoint was loaded."""
        self.started = True
        self.buffers.keep()
        if self.snapshot is not None:
            self.snapshot.take(step=0)
            self._since_snapshot = 0

    def begin_step(self) -> None:
        """Starts at the first step, if nobody did; later where its forward pass has left a buffer not finite."""
        if not self.started and not self.buffers.not_finite():
            self.start()

    def sum_of_buffers(self) -> Tensor | None:
        """Sum over the buffers, on the device: not finite if one of them is not; ``None`` without buffers."""
        return self.buffers.total() if self.buffers.names else None

    def good_step(self, step: int) -> None:
        """Takes note of a step whose gradients are fine; with them the weights that gave them, not yet updated."""
        if self.buffers.names:
            self.buffers.keep()
        if self.snapshot is None:
            return
        # The weights at hand gave finite gradients: that is what makes them worth going back to.
        self._since_snapshot += 1
        if self._since_snapshot >= self.snapshot_every_n_steps:
            self.snapshot.take(step)
            self._since_snapshot = 0

    def overflow_step(self) -> None:
        """Takes note of a step that the loss scaler drops: its forward pass counts, unless a buffer is not finite."""
        self.buffers.restore_() if self.buffers.not_finite() else self.buffers.keep()

    def bad_step(self, streak: int) -> bool:
        """Puts the buffers back, and after enough bad steps everything; tells whether it did the latter.

        Args:
            streak: bad steps in a row, this one included.
        """
        self.buffers.restore_()
        # NaN in a weight is in every gradient to come: waiting for more bad steps would lose them all.
        if self.snapshot is None or (streak % self.rollback_after and not self.has_nonfinite_weights()):
            return False
        return self.roll_back()

    def roll_back(self) -> bool:
        """Goes back to the last snapshot; tells whether there was one."""
        if self.snapshot is None or self.snapshot.step is None:
            return False
        self.snapshot.restore_()
        self.buffers.keep()
        self._since_snapshot = 0
        return True

    @torch.no_grad()
    def has_nonfinite_weights(self) -> bool:
        """Tells whether a parameter is not finite, on any process: then dropping steps cannot help. Reads the host."""
        # One read for all parameters, and one vote of all processes: all go back, or none does.
        flags = [parameter.isfinite().all() for parameter in map(local, self._params())]
        bad = not bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()) if flags else False
        return any_process(bad, self._params())

    def _params(self) -> list[Tensor]:
        return [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]
