"""Everything that a diagnosis wants to know beyond gradient norms, behind four calls in a step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradguard.measurement.layout import Layout, clean_name
from lightning_gradguard.probes.activations import Probe
from lightning_gradguard.probes.losses import Losses
from lightning_gradguard.probes.optimizer import optimizer_facts
from lightning_gradguard.probes.recurrence import TemporalProbe
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

    Raises:
        TypeError, ValueError: if ``every_n_steps`` is no int of at least 1.
    """

    def __init__(self, module: nn.Module, every_n_steps: int = 50) -> None:
        self.module = module
        self.every_n_steps = every_n_steps
        self.probe = Probe(module, every_n_steps)
        self.temporal = TemporalProbe(module, every_n_steps)
        self._watched: list[_Watched] = []  # one for each optimizer
        self._kinds = {clean_name(name): type(part).__name__ for name, part in module.named_modules()}
        self._pending: Tensor | None = None  # losses that no optimizer has claimed yet
        self._batches: deque[tuple[int, int, int]] = deque(maxlen=_BATCHES)  # (step, epoch, index) of the last ones

    def before_forward(self, step: int, batch: int | None = None, epoch: int = 0) -> None:
        """Attaches the hooks of a sampled step.

        Args:
            step: that the forward pass belongs to.
            batch: index of the batch in its epoch, where there is one, so that a bad batch can be named.
            epoch: its epoch.
        """
        if batch is not None:
            self._batches.append((step, epoch, batch))
        self.probe.start(step)
        self.temporal.start(step)

    def after_forward(self, loss: Tensor | None = None) -> None:
        """Removes them, and adds the loss that is about to be back-propagated; no host sync."""
        self.probe.stop()
        self.temporal.stop()
        if loss is not None:
            value = loss.detach().float()
            self._pending = value.clone() if self._pending is None else self._pending + value

    def before_step(self, layout: Layout, step: int) -> None:
        """Copies the parameters of one optimizer on a sampled step, and takes the loss for its own."""
        self._of(layout).meter.before_step(step)
        self._claim_loss(layout)

    def after_step(self, layout: Layout) -> None:
        """Compares them."""
        self._of(layout).meter.after_step()

    def enrich(self, record: StepRecord, layout: Layout, optimizer: Optimizer | None = None) -> StepRecord:
        """The record with all that was seen since the last one; several host reads, on a logged step."""
        self._claim_loss(layout)
        loss, spread, bad = self._of(layout).losses.take()
        facts: dict[str, Any] = {
            "loss": loss,
            "loss_std": spread,
            "num_nonfinite_losses": bad,
            "activations": self.probe.take(),
            "temporal_norms": self.temporal.take(),
            "update_ratios": self._of(layout).meter.take(),
        }
        if record.layers:
            facts |= self._of(layout).structure.facts(self.probe.order)
        if optimizer is not None:
            facts |= optimizer_facts(layout, optimizer)
        place = next(((epoch, batch) for step, epoch, batch in reversed(self._batches) if step == record.step), None)
        if place is not None:
            facts["epoch"], facts["batch"] = place
        return replace(record, **facts)

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
            _Watched(UpdateMeter(layout, self.every_n_steps), Structure(layout, self._kinds), Losses())
        )
        self.probe.look_for_modules()
        return self._watched[-1]


@dataclass(frozen=True)
class _Watched:
    """What is kept of the parameters of one optimizer."""

    meter: UpdateMeter
    structure: Structure
    losses: Losses


def _overlap(one: Layout, other: Layout) -> bool:
    ids = {id(p) for p in one.params}
    return any(id(p) in ids for p in other.params)
