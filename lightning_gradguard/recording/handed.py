"""A record that waits until the optimizer is handed the gradients, where somebody may change them before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from lightning_gradguard.measurement.needs import Needs
from lightning_gradguard.record import StepRecord

_CLOSE = 1e-5  # relative: norms that are summed in another order differ in their last bits


@dataclass(eq=False)
class Held:
    """The record of a step whose gradients others may change once more.

    Attributes:
        record: as if nobody did.
        writes: of each gradient, which tensor it is and how often it was written to, once ours are done.
        handed: the optimizers that have been handed theirs, of several that are taken as one.
    """

    record: StepRecord
    writes: list[tuple[int, int] | None] = field(default_factory=list)
    handed: set[int] = field(default_factory=set)

    def note_writes(self, layout: Layout) -> None:
        """Notes what gradients are now; all changes after it are somebody else's. No host sync."""
        self.writes = _writes(layout)

    def without_knowledge(self) -> StepRecord:
        """Returns the record of a step that was never handed to its optimizer, or half of it."""
        return replace(self.record, post_clip_norm=None, cosine=None)

    @torch.no_grad()
    def as_handed(self, layout: Layout, needs: Needs) -> tuple[StepRecord, bool]:
        """Measures gradients once more; a pass and a host read, on a logged step.

        Args:
            layout: the parameters.
            needs: what is measured of them at every step.

        Returns:
            The record with what the optimizer gets, and whether that is something else than we left.
        """
        now = _writes(layout)
        if sum(write is None for write in now) > sum(write is None for write in self.writes):
            return self.without_knowledge(), True  # zeroed by a loop that has stepped the other half already
        total = float(measure(layout, needs).total)  # host sync: a logged step
        left = self.record.post_clip_norm
        same = left is not None and math.isclose(total, left, rel_tol=_CLOSE)
        if same and now == self.writes:
            return self.record, False
        if not math.isfinite(total):
            return self.without_knowledge(), True
        return replace(self.record, post_clip_norm=total, cosine=None), True


def _writes(layout: Layout) -> list[tuple[int, int] | None]:
    """Returns for each parameter which tensor its gradient is, and how often that was written to."""
    grads = [parameter.grad for parameter in layout.params]
    return [None if grad is None else (id(grad), grad._version) for grad in grads]
