"""Everything that a diagnosis wants to know beyond gradient norms, behind four calls in a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_gradguard.harmless.part import Part, tell
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.probes.activations import Probe, is_watched
from lightning_gradguard.probes.compiled import Eagerly, modules_in_compiled_code
from lightning_gradguard.probes.recurrence import TemporalProbe
from lightning_gradguard.probes.sampled import SampledProbe, is_sampled
from lightning_gradguard.probes.structure import Structure
from lightning_gradguard.probes.updates import UpdateMeter
from lightning_gradguard.record import StepRecord


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
        eagerly: whether compiled code runs eagerly on sampled steps, so that the probes see inside of it. Its weights
            then differ from those of an unwatched run in their last bits; without it they do not, and activations and
            gradients over time of compiled modules are not seen, which is said once.

    Raises:
        TypeError, ValueError: if ``every_n_steps`` is no int of at least 1.
    """

    def __init__(self, module: nn.Module, every_n_steps: int = 50, *, eagerly: bool = False) -> None:
        self.module = module
        self.every_n_steps = every_n_steps
        self.probe = Probe(module, every_n_steps, eagerly=eagerly)
        self.temporal = TemporalProbe(module, every_n_steps, eagerly=eagerly)
        compiled = modules_in_compiled_code(module)
        self._eagerly = Eagerly() if eagerly and compiled else None
        self._num_unseen = 0 if eagerly else sum(map(is_watched, compiled))
        self._probes: tuple[SampledProbe, ...] = (self.probe, self.temporal)
        self._early = frozenset(step for step in range(every_n_steps) if is_sampled(step, every_n_steps))
        self._looks = False  # whether the probes were told of the forward pass under way
        self.copied: set[int] = set()  # of which layouts parameters are copied: after_step compares these
        self._updates = Part("the measurement of updates", "rules that look at them stay silent")
        self._structure = Part("the look at the model's structure", "rules that look at depth stay silent")
        self._loss = Part("the look at the loss", "records hold none")
        self._watched: list[_Watched] = []  # one for each optimizer
        self._kinds = {name: type(part).__name__ for part, name in module_names(module).items()}
        self._pending: Tensor | None = None  # losses that no optimizer has claimed yet
        self._losses: dict[int, tuple[Tensor, int]] = {}  # by layout: their sum, and steps

    def before_forward(self, step: int) -> None:
        """Attaches the hooks of a sampled step."""
        # Asked once for all probes: a step that is not sampled calls none of them. What is no number they refuse.
        sampled = not isinstance(step, int) or step % self.every_n_steps == 0 or step in self._early
        self._looks = self._looks or sampled
        if not self._looks:
            return
        for probe in self._probes:
            probe.part.run(probe.start, step)
        if self._eagerly is not None and any(probe.part.is_attached for probe in self._probes):
            self._eagerly.start()

    def after_forward(self, loss: Tensor | None = None) -> None:
        """Takes the hooks off, and adds the loss that is about to be back-propagated; no host sync."""
        if self._num_unseen:
            tell(
                f"{self._num_unseen} modules run inside of compiled code, which stays compiled: their activations and "
                "gradients over time are not seen. probe_eagerly=True runs sampled steps eagerly and sees them; the "
                "weights then differ in their last bits from those of a run that is not watched."
            )
            self._num_unseen = 0
        if self._looks:
            self._looks = False
            for probe in self._probes:
                probe.part.run(probe.stop)
            if self._eagerly is not None:
                self._eagerly.stop()
        if loss is not None:
            self._loss.run(self._add_loss, loss)

    def detach(self) -> None:
        """Takes every hook off, whatever happened in between."""
        for probe in self._probes:
            probe.part.detach()
        if self._eagerly is not None:
            self._eagerly.stop()

    def before_step(self, layout: Layout, step: int) -> None:
        """Copies the parameters of one optimizer on a sampled step, and takes the loss for its own."""
        is_new = all(watched.meter.layout is not layout for watched in self._watched)
        if is_new or step % self.every_n_steps == 0 or step in self._early:
            self.copied.add(id(layout))
            self._updates.run(self._copy_parameters, layout, step)
        if self._pending is not None:
            self._loss.run(self._claim_loss, layout)

    def after_step(self, layout: Layout) -> None:
        """Compares the parameters of one optimizer with their copies, and drops these; does nothing without copies."""
        self.copied.discard(id(layout))
        self._updates.run(self._compare_parameters, layout)

    def enrich(self, record: StepRecord, layout: Layout) -> StepRecord:
        """The record with all that was seen since the last one; several host reads, on a logged step."""
        facts: dict[str, Any] = {
            "loss": self._loss.run(self._mean_loss, layout),
            "activations": self.probe.part.run(self.probe.take),
            "temporal_norms": self.temporal.part.run(self.temporal.take),
            "update_ratios": self._updates.run(self._take_updates, layout),
        }
        if record.layers:
            facts |= self._structure.run(self._facts_of_structure, layout) or {}
        return replace(record, **facts)

    def _copy_parameters(self, layout: Layout, step: int) -> None:
        self._of(layout).meter.before_step(step)

    def _compare_parameters(self, layout: Layout) -> None:
        self._of(layout).meter.after_step()

    def _take_updates(self, layout: Layout) -> tuple[float | None, ...] | None:
        return self._of(layout).meter.take()

    def _facts_of_structure(self, layout: Layout) -> dict[str, Any]:
        return self._of(layout).structure.facts(self.probe.order)

    def _add_loss(self, loss: Tensor) -> None:
        value = loss.detach().float()
        self._pending = value if self._pending is None else self._pending + value

    def _mean_loss(self, layout: Layout) -> float | None:
        self._claim_loss(layout)
        total, steps = self._losses.pop(id(layout), (None, 0))
        return None if total is None else float(total) / steps  # host sync: a logged step

    def _claim_loss(self, layout: Layout) -> None:
        """The loss that was back-propagated last belongs to the optimizer that is about to step."""
        if self._pending is not None:
            total, steps = self._losses.get(id(layout), (0.0, 0))
            self._losses[id(layout)] = (self._pending + total, steps + 1)
            self._pending = None

    def _of(self, layout: Layout) -> _Watched:
        for watched in self._watched:
            if watched.meter.layout is layout:
                return watched
        # A layout that was built anew: parameters have come, and modules perhaps.
        self._watched = [w for w in self._watched if not _overlap(w.meter.layout, layout)]
        self._watched.append(_Watched(UpdateMeter(layout, self.every_n_steps), Structure(layout, self._kinds)))
        self.probe.look_for_modules()
        return self._watched[-1]


@dataclass(frozen=True)
class _Watched:
    """What is kept of the parameters of one optimizer."""

    meter: UpdateMeter
    structure: Structure


def _overlap(one: Layout, other: Layout) -> bool:
    ids = {id(p) for p in one.params}
    return any(id(p) in ids for p in other.params)
