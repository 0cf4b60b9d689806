"""Everything that a diagnosis wants to know beyond gradient norms, behind four calls in a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.probes.activations import Probe, is_early, is_sampled
from lightning_gradguard.probes.batch import BatchProbe
from lightning_gradguard.probes.losses import Losses
from lightning_gradguard.probes.optimizer import optimizer_facts
from lightning_gradguard.probes.outside import frozen_last, unoptimized
from lightning_gradguard.probes.recurrence import TemporalProbe
from lightning_gradguard.probes.steps import Steps
from lightning_gradguard.probes.structure import Structure
from lightning_gradguard.probes.updates import UpdateMeter
from lightning_gradguard.record import StepRecord

_BATCHES = 64  # that are remembered: a bad step may become known some steps later


class Instruments:
    """Probes of one model: activations, gradients over time, measured updates, loss.

    The calls of one step, in this order; all but those of a sampled step cost a comparison::

        instruments.before_forward(step)
        loss = ...                                   # the forward pass
        instruments.after_forward(loss)
        loss.backward()
        record = pipeline.before_step(step=step)     # enriches the record, if the pipeline has the instruments
        optimizer.step()
        pipeline.after_step()

    With several optimizers the last three are called for each: losses since the last of these calls are taken for that
    optimizer's, and what the probes saw goes to the first record after it.

    Args:
        module: the model.
        every_n_steps: interval between sampled steps, >= 1; the powers of two below it are sampled as well. 50 makes
            the mean cost of probing small against a training step.

    Attributes:
        step: of the last forward pass.
        clip_outside: the norm at which the Trainer itself clips, after our records are made; set by who knows it.

    Raises:
        TypeError, ValueError: if ``every_n_steps`` is no int of at least 1.
    """

    def __init__(self, module: nn.Module, every_n_steps: int = 50) -> None:
        self.module = module
        self.every_n_steps = every_n_steps
        self.probe = Probe(module, every_n_steps)
        self.temporal = TemporalProbe(module, every_n_steps)
        self._watched: list[_Watched] = []  # one for each optimizer
        self._kinds = {name: type(part).__name__ for part, name in module_names(module).items()}
        self.batch = BatchProbe()
        self.step = 0  # of the last forward pass
        self.clip_outside: float | None = None
        self._sampling = False
        self._pending: Tensor | None = None  # losses that no optimizer has claimed yet
        self._batches: deque[tuple[int, int, int]] = deque(maxlen=_BATCHES)  # (step, epoch, index) of the last ones

    def before_forward(self, step: int, batch: Any = None, index: int | None = None, epoch: int = 0) -> None:
        """Attaches the hooks of a sampled step.

        Args:
            step: that the forward pass belongs to.
            batch: what the forward pass gets, so that its scale can be seen.
            index: of the batch in its epoch, where there is one, so that a bad batch can be named.
            epoch: its epoch.
        """
        if step != self.step:
            for watched in self._watched:
                watched.steps.begin()
        self.step = step
        if index is not None:
            self._batches.append((step, epoch, index))
        self._sampling = is_sampled(step, self.every_n_steps)
        if self._sampling and batch is not None:
            self.batch.look(batch)
        self.probe.start(step)
        self.temporal.start(step)

    def is_early(self, step: int) -> bool:
        """Whether a record is made at this step even if none is logged, so that what is certain is said at once."""
        return is_early(step)

    def after_forward(self, loss: Tensor | None = None, root: Tensor | None = None) -> None:
        """Removes them, and adds the loss that is about to be back-propagated; no host sync.

        Args:
            loss: without a loss scale.
            root: what the backward pass begins at, where that is another tensor.
        """
        self.probe.stop()
        self.temporal.stop()
        if loss is None:
            return
        value = loss.detach().float()
        self._pending = value.clone() if self._pending is None else self._pending + value
        for watched in self._watched:
            watched.steps.add_backward()
        root = loss if root is None else root
        if self._sampling and root.requires_grad:
            root.register_hook(self._look_for_old_gradients)

    def before_step(self, layout: Layout, step: int) -> None:
        """Copies the parameters of one optimizer on a sampled step, and takes the loss for its own."""
        watched = self._of(layout)
        watched.meter.before_step(step)
        watched.steps.step()
        self._claim_loss(layout)

    def without_step(self, layout: Layout) -> None:
        """Takes the loss of a step for which no parameter of an optimizer has a gradient."""
        self._of(layout).steps.step()
        self._claim_loss(layout)

    def after_step(self, layout: Layout) -> None:
        """Compares them."""
        self._of(layout).meter.after_step()

    def waiting(self, layout: Layout) -> int | None:
        """Backward passes without a step of this optimizer, now and then once they are suspiciously many."""
        return self._of(layout).steps.waiting()

    def enrich(self, record: StepRecord, layout: Layout, optimizers: Optimizers | None = None) -> StepRecord:
        """The record with all that was seen since the last one; several host reads, on a logged step."""
        self._claim_loss(layout)
        watched = self._of(layout)
        loss, spread, bad = watched.losses.take()
        facts: dict[str, Any] = {
            "loss": loss,
            "loss_std": spread,
            "num_nonfinite_losses": bad,
            "activations": self.probe.take(),
            "temporal_norms": self.temporal.take(),
            "update_ratios": watched.meter.take(),
            "inputs": self.batch.take(),
            "losses": self.probe.functions.take(),
            "old_gradients": watched.steps.take_old_gradients(),
            "clip_outside": self.clip_outside,
        }
        if record.num_steps > 0:
            watched.steps.ever = True
        if record.layers:
            facts |= watched.structure.facts(self.probe.order, self.probe.flows)
        if optimizers is not None:
            facts |= optimizer_facts(layout, optimizers)
        if record.early:
            facts |= self._outside(record.num_optimizers)
        place = next(((epoch, batch) for step, epoch, batch in reversed(self._batches) if step == record.step), None)
        if place is not None:
            facts["epoch"], facts["batch"] = place
        return replace(record, **facts)

    def _outside(self, num_optimizers: int) -> dict[str, Any]:
        """What is outside the optimizers, once all of them are known."""
        layouts = [watched.meter.layout for watched in self._watched]
        if len(layouts) < num_optimizers or any(layout.sharding is not None for layout in layouts):
            return {}
        return {
            "unoptimized": unoptimized(self.module, layouts),
            "frozen_last": frozen_last(self.module, layouts, self.probe.order, self.probe.flows),
        }

    @torch.no_grad()
    def _look_for_old_gradients(self, gradient: Tensor) -> None:
        """Runs when the backward pass of a sampled step begins."""
        for watched in self._watched:
            if watched.meter.layout.sharding is None:
                watched.steps.look([parameter.grad for parameter in watched.meter.layout.params])

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """What was seen and is not told yet, of one optimizer; what all share with it."""
        watched = self._of(layout)
        return {
            "losses": watched.losses.state(),
            "meter": watched.meter.state(),
            "temporal": self.temporal.state(),
            "probe": self.probe.state_dict(),
        }

    def load_state_dict(self, layout: Layout, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        watched = self._of(layout)
        watched.losses.load_state(state["losses"])
        watched.meter.load_state(state["meter"])
        self.temporal.load_state(state["temporal"])
        self.probe.load_state_dict(state["probe"])

    def _claim_loss(self, layout: Layout) -> None:
        """The loss that was back-propagated last belongs to the optimizer that is about to step."""
        if self._pending is not None:
            self._of(layout).losses.add(self._pending)
            self._pending = None

    def _of(self, layout: Layout) -> _Watched:
        for watched in self._watched:
            if watched.meter.layout is layout:
                return watched
        # A layout that was built anew: parameters have come, and modules perhaps.
        self._watched = [w for w in self._watched if not _overlap(w.meter.layout, layout)]
        self._watched.append(
            _Watched(UpdateMeter(layout, self.every_n_steps), Structure(layout, self._kinds), Losses(), Steps(layout))
        )
        self.probe.look_for_modules()
        return self._watched[-1]


@dataclass(frozen=True)
class _Watched:
    """What is kept of the parameters of one optimizer."""

    meter: UpdateMeter
    structure: Structure
    losses: Losses
    steps: Steps


def _overlap(one: Layout, other: Layout) -> bool:
    ids = {id(p) for p in one.params}
    return any(id(p) in ids for p in other.params)
