"""Everything that a diagnosis wants to know beyond gradient norms, behind four calls in a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_gradguard.harmless.part import Part, tell
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.probes.activations import Probe, is_watched
from lightning_gradguard.probes.batch import BatchProbe
from lightning_gradguard.probes.compiled import Eagerly, modules_in_compiled_code
from lightning_gradguard.probes.losses import FOLD_EVERY, Losses
from lightning_gradguard.probes.optimizer import optimizer_facts
from lightning_gradguard.probes.outside import frozen_as_drawn, frozen_last, frozen_zeros, unoptimized
from lightning_gradguard.probes.recurrence import TemporalProbe
from lightning_gradguard.probes.running import RunningStatistics
from lightning_gradguard.probes.sampled import SampledProbe, early_steps
from lightning_gradguard.probes.steps import Steps
from lightning_gradguard.probes.structure import Structure
from lightning_gradguard.probes.unregistered import Unregistered
from lightning_gradguard.probes.updates import UpdateMeter
from lightning_gradguard.record import StepRecord

_LATE = 16  # batches after a sampled one for which an optimizer that did not step there is waited for
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
        eagerly: whether compiled code runs eagerly on sampled steps, so that the probes see inside of it. Its weights
            then differ from those of an unwatched run in their last bits; without it they do not, and activations and
            gradients over time of compiled modules are not seen, which is said once.

    Attributes:
        step: of the last forward pass.
        awaits_steps: whether an optimizer has not stepped yet.
        sampling: whether the step at hand is sampled, so that hooks are attached.
        compares: parameters that were copied before their step, and are compared after it.
        clip_outside: the norm at which the Trainer itself clips, after our records are made; set by who knows it.

    Raises:
        TypeError, ValueError: if ``every_n_steps`` is no int of at least 1.
    """

    def __init__(self, module: nn.Module, every_n_steps: int = 50, *, eagerly: bool = False) -> None:
        self.module = module
        self.every_n_steps = every_n_steps
        self.eagerly = eagerly
        self.probe = Probe(module, every_n_steps, eagerly=eagerly)
        self.temporal = TemporalProbe(module, every_n_steps, eagerly=eagerly)
        compiled = modules_in_compiled_code(module)
        self._eagerly = Eagerly() if eagerly and compiled else None
        self._num_unseen = 0 if eagerly else sum(map(is_watched, compiled))
        self._probes: tuple[SampledProbe, ...] = (self.probe, self.temporal)
        self._hooks = Part("the set of hooks", "no module is looked at any more", remove=self.detach)
        self._updates = Part("the measurement of updates", "rules that look at them stay silent")
        self._running = Part("the look at running statistics", "rules that look at them stay silent")
        self._structure = Part("the look at the model's structure", "rules that look at depth stay silent")
        self._loss = Part("the look at the loss", "records hold none")
        self._inputs = Part("the look at batches", "rules that look at them stay silent")
        self._counting = Part("the count of backward passes", "rules that look for steps that are missing stay silent")
        self._settings = Part("the look at the optimizer's settings", "rules that look at them stay silent")
        self._watched: dict[Layout, _Watched] = {}  # one for each optimizer
        self._kinds = {name: type(part).__name__ for part, name in module_names(module).items()}
        self.batch = BatchProbe()
        self.running = RunningStatistics(module)
        self.unregistered = Unregistered(module)
        self.step = 0  # of the last forward pass
        self.clip_outside: float | None = None
        self.sampling = False
        self.awaits_steps = True
        self.compares: set[Layout] = set()
        self._owed: set[Layout] = set()  # optimizers that have not stepped since the last sampled step
        self._late = False  # whether there are such, or steps that are looked at for old gradients
        self._sampled_at = self._stepped_at = -1  # the last sampled step, the last one of any optimizer
        self._early = early_steps(every_n_steps)
        self._pending: Tensor | float | None = None  # losses that no optimizer has claimed yet
        self._batches: deque[tuple[int, int, int]] = deque(maxlen=_BATCHES)  # (step, epoch, index) of the last ones

    def __repr__(self) -> str:
        return f"Instruments({type(self.module).__name__}, every_n_steps={self.every_n_steps}, eagerly={self.eagerly})"

    def before_forward(self, step: int, batch: Any = None, index: int | None = None, epoch: int = 0) -> None:
        """Attaches the hooks of a sampled step.

        Args:
            step: that the forward pass belongs to.
            batch: what the forward pass gets, so that its scale can be seen.
            index: of the batch in its epoch, where there is one, so that a bad batch can be named.
            epoch: its epoch.
        """
        if self.sampling:  # the step before may have ended in an exception
            self._hooks.run(self.detach)
        self.step = step
        if index is not None:
            self._batches.append((step, epoch, index))
        self.sampling = step % self.every_n_steps == 0 or step in self._early  # on every step: no call
        if not self.sampling:  # nothing to attach: most steps end here
            if self._late and step > self._sampled_at + _LATE:
                self._counting.run(self._give_up)
            return
        if step != self._sampled_at:
            self._sampled_at = step
            self._counting.run(self._ask_all, step)
        if not self._hooks.gone:
            for probe in self._probes:
                probe.part.run(probe.start, step)
        self._running.run(self.running.begin)
        if step == 0:
            self._structure.run(self.unregistered.look, [])
        if batch is not None:
            self._inputs.run(self.batch.look, batch)
        if self._eagerly is not None and any(probe.part.is_attached for probe in self._probes):
            self._eagerly.start()

    def after_forward(self, loss: Tensor | None = None, root: Tensor | None = None) -> None:
        """Removes them, and adds the loss that is about to be back-propagated; no host sync.

        Args:
            loss: without a loss scale.
            root: what the backward pass begins at, where that is another tensor.
        """
        if self._num_unseen:
            tell(
                f"{self._num_unseen} modules run inside of compiled code, which stays compiled: their activations and "
                "gradients over time are not seen. probe_eagerly=True runs sampled steps eagerly and sees them; the "
                "weights then differ in their last bits from those of a run that is not watched."
            )
            self._num_unseen = 0
        if self.sampling:
            self._hooks.run(self.detach)
        if loss is None:
            return
        self._loss.note(self._add_loss, loss)
        if self.sampling or self.awaits_steps or self._late:
            self._counting.run(self._count_backward, loss if root is None else root)

    def leave_functions_out(self) -> None:
        """Looks at no activation function from now on: what sees them cannot be taken off inside of compiled code."""
        self.probe.functions.part.gone = True

    def detach(self) -> None:
        """Takes every hook off, whatever happened in between."""
        for probe in self._probes:
            probe.part.run(probe.stop)
            probe.part.detach()
        functions = self.probe.functions
        functions.part.run(functions.stop)
        if functions.part.gone:  # within an operator it could not be taken off
            with suppress(Exception):
                functions.stop()
        if self._eagerly is not None:
            self._eagerly.stop()

    def before_step(self, layout: Layout, step: int) -> None:
        """Copies the parameters of one optimizer on a sampled step, and takes the loss for its own."""
        if step % self.every_n_steps == 0 or step in self._early or layout in self._owed:
            self.compares.add(layout)
            self._owed.discard(layout)
            self._updates.run(self._copy_parameters, layout)
        self._stepped_at = self.step
        self.without_step(layout, fed=True)

    def without_step(self, layout: Layout, *, fed: bool = False) -> None:
        """Takes the loss of a step for which no parameter of an optimizer has a gradient, or of one that is ``fed``."""
        if self.sampling or self.awaits_steps or self._late or layout not in self._watched:
            self._counting.run(self._count_step, layout, fed)
        if self._pending is not None:
            self._claim_loss(layout)

    def after_step(self, layout: Layout) -> None:
        """Compares them."""
        if layout in self.compares:
            self.compares.discard(layout)
            self._updates.run(self._compare_parameters, layout)

    def waiting(self, layout: Layout) -> int | None:
        """Backward passes without a step of this optimizer, now and then once they are suspiciously many."""
        return self._counting.run(self._waiting, layout)

    def leads_to(self, layout: Layout) -> bool | None:
        """Whether the last backward pass led to a parameter of this optimizer; ``None`` where nobody looked."""
        return self._of(layout).steps.reached

    def enrich(self, record: StepRecord, layout: Layout, optimizers: Optimizers | None = None) -> StepRecord:
        """The record with all that was seen since the last one; several host reads, on a logged step."""
        facts: dict[str, Any] = self._loss.run(self._facts_of_losses, layout) or {}
        facts |= {
            "activations": self.probe.part.run(self.probe.take),
            "temporal_norms": self.temporal.part.run(self.temporal.take),
            "update_ratios": self._updates.run(self._take_updates, layout),
            "inputs": self._inputs.run(self.batch.take),
            "losses": self.probe.functions.part.run(self.probe.functions.take),
            "old_gradients": self._counting.run(self._take_old_gradients, layout, record.num_steps > 0),
            "clip_outside": self.clip_outside,
        }
        if facts["activations"] is not None:
            facts["running"] = self._running.run(self.running.look, self.probe.flows)
        if record.layers:
            facts |= self._structure.run(self._facts_of_structure, layout) or {}
        if optimizers is not None:
            facts |= self._settings.run(optimizer_facts, layout, optimizers) or {}
        if record.early:
            facts |= self._structure.run(self._outside, record) or {}
        place = next(((epoch, batch) for step, epoch, batch in reversed(self._batches) if step == record.step), None)
        if place is not None:
            facts["epoch"], facts["batch"] = place
        return replace(record, **facts)

    def state_dict(self, layout: Layout) -> dict[str, Any]:
        """What was seen and is not told yet, of one optimizer; what all share with it."""
        watched = self._of(layout)
        return {
            "losses": watched.losses.state(),
            "meter": watched.meter.state(),
            "temporal": self.temporal.state(),
            "probe": self.probe.state_dict(),
            "running": self.running.state(),
        }

    def load_state_dict(self, layout: Layout, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        watched = self._of(layout)
        watched.losses.load_state(state["losses"])
        watched.meter.load_state(state["meter"])
        self.temporal.load_state(state["temporal"])
        self.probe.load_state_dict(state["probe"])
        self.running.load_state(state.get("running"))

    def _copy_parameters(self, layout: Layout) -> None:
        self._of(layout).meter.copy()

    def _compare_parameters(self, layout: Layout) -> None:
        self._of(layout).meter.after_step()

    def _take_updates(self, layout: Layout) -> tuple[float | None, ...] | None:
        return self._of(layout).meter.take()

    def _facts_of_structure(self, layout: Layout) -> dict[str, Any]:
        return self._of(layout).structure.facts(self.probe.order, self.probe.flows)

    def _facts_of_losses(self, layout: Layout) -> dict[str, Any]:
        self._claim_loss(layout)
        loss, spread, bad = self._of(layout).losses.take()
        return {"loss": loss, "loss_std": spread, "num_nonfinite_losses": bad}

    def _outside(self, record: StepRecord) -> dict[str, Any]:
        """What is outside the optimizers, once all of them are known."""
        layouts = list(self._watched)
        if len(layouts) < record.num_optimizers or not all(layout.sharding.whole for layout in layouts):
            return {}
        return {
            "unoptimized": unoptimized(self.module, layouts),
            "unregistered": self.unregistered.look(layouts),
            "frozen_zeros": frozen_zeros(
                self.module, [n for n, norm in zip(record.layers, record.layer_norms, strict=True) if norm == 0]
            ),
            "frozen_as_drawn": frozen_as_drawn(self.module, self.probe.order, self.probe.flows),
            "frozen_last": frozen_last(self.module, layouts, self.probe.order, self.probe.flows),
        }

    def _ask_all(self, step: int) -> None:
        """Wants to know of each optimizer how far its next step goes, and what gradients it began with."""
        self._owed, self._late = set(self._watched), True
        # One that stepped just before begins anew here, and so does a resumed run; of others nobody knows what they
        # have gathered by now.
        anew = len(self._watched) == 1 and self._stepped_at in (-1, step - 1)
        if anew or step in self._early:  # over several batches it costs a norm of each, and is found out early
            for watched in self._watched.values():
                watched.steps.ask(anew=anew)

    def _give_up(self) -> None:
        self._owed, self._late = set(), False
        for watched in self._watched.values():
            watched.steps.give_up()

    def _count_backward(self, root: Tensor) -> None:
        for watched in self._watched.values():
            watched.steps.add_backward()
            if self.sampling and not watched.steps.fed:
                watched.steps.look_where_it_leads(root)
        if (self.sampling or self._late) and root.requires_grad:
            root.register_hook(self._counting.hook(self._look_for_old_gradients, "the loss"))

    def _look_for_old_gradients(self, gradient: Tensor) -> None:
        """Runs when the backward pass of a sampled step begins."""
        for watched in self._watched.values():
            if watched.meter.layout.sharding.whole:
                watched.steps.look([parameter.grad for parameter in watched.meter.layout.params])

    def _waiting(self, layout: Layout) -> int | None:
        return self._of(layout).steps.waiting()

    def _count_step(self, layout: Layout, fed: bool) -> None:
        steps = self._of(layout).steps
        steps.step()
        steps.fed = steps.fed or fed
        self.awaits_steps = not all(watched.steps.ever and watched.steps.fed for watched in self._watched.values())
        self._late = bool(self._owed) or any(watched.steps.asked for watched in self._watched.values())

    def _take_old_gradients(self, layout: Layout, stepped: bool) -> bool | None:
        steps = self._of(layout).steps
        steps.ever = steps.ever or stepped
        return steps.take_old_gradients()

    def _add_loss(self, loss: Tensor) -> None:
        # On the CPU a number: a read of the host's own memory, which waits for nobody, where a copy would be made.
        if loss.device.type == "cpu" and type(loss) is Tensor and not loss.dim() and loss.is_floating_point():
            self._pending = loss.item() if self._pending is None else self._pending + loss.item()
        else:
            value = (loss.detach() if loss.requires_grad else loss).float()
            self._pending = value.clone() if self._pending is None else self._pending + value

    def _claim_loss(self, layout: Layout) -> None:
        """The loss that was back-propagated last belongs to the optimizer that is about to step."""
        if self._pending is not None:
            losses = (self._watched.get(layout) or self._of(layout)).losses
            losses.new.append(self._pending)
            self._pending = None
            if len(losses.new) == FOLD_EVERY:
                losses.fold()

    def _of(self, layout: Layout) -> _Watched:
        if layout not in self._watched:  # built anew: parameters have come, and modules perhaps
            self._watched = {known: w for known, w in self._watched.items() if not _overlap(known, layout)}
            self._watched[layout] = _Watched(
                UpdateMeter(layout, self.every_n_steps), Structure(layout, self._kinds), Losses(), Steps(layout)
            )
            self.awaits_steps = True
            self.probe.look_for_modules()
        return self._watched[layout]


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
