"""From device tensors to a record: one copy to the host, on logged steps only.

A record is put together from groups of numbers: totals, layers, and what happened since the last record. A new number
is declared in its group, under the name that it has in :class:`~lightning_gradguard.record.StepRecord`, and there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.clip.answer import filled
from lightning_gradguard.clip.apply import cosine
from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.guard.damage import Damage, inspect
from lightning_gradguard.guard.verdict import Dropped, Judgement, Over, verdict_of
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, by_layer, measure_exactly, p_norms
from lightning_gradguard.record import StepRecord
from lightning_gradguard.recording.on_host import Number, Vector, on_host
from lightning_gradguard.recording.since_last import Counters, SinceLast
from lightning_gradguard.recording.step_norms import told

# Below this a float32 norm has lost squares to underflow: such gradients are measured again, exactly.
_TINY = 1e-15

# Norms of the weights are a pass of their own, as long as that over the gradients, and weights change slowly.
WEIGHTS_EVERY_N_STEPS = 50


@dataclass(frozen=True)
class View:
    """What records hold in this run, whatever the step.

    Attributes:
        optimizer: index of the optimizer.
        num_optimizers: how many there are.
        per_layer: whether records hold layers, or totals only.
        norm_type: p of the layer norms.
        clips: whether a policy is at work.
        dry_run: whether that policy decides and clips nothing.
        handed_on: whether nobody changes gradients between this record and the optimizer; else what the optimizer gets
            is not known here, and not written.
    """

    optimizer: int = 0
    num_optimizers: int = 1
    per_layer: bool = True
    norm_type: float = 2.0
    clips: bool = False
    dry_run: bool = False
    handed_on: bool = True


@dataclass(frozen=True, eq=False)
class Totals:
    """The whole gradient of this step, before and after clipping."""

    total_norm: Number
    post_clip_norm: Number = None
    threshold: Number = None
    coefficient: Number = None
    cosine: Number = None
    clipped: Number = None

    @classmethod
    def of(cls, measurement: Measurement, clips: Clips | None, after: Measurement | None, view: View) -> Totals:
        """Returns the totals on the device; those of clipping for a step that got so far."""
        if clips is None or after is None:
            return cls(measurement.total)
        return cls(
            total_norm=measurement.total,
            post_clip_norm=after.total,
            threshold=None if clips.threshold is None else filled(measurement.total, clips.threshold),
            coefficient=clips.single_coefficient,
            cosine=cosine(measurement, after) if view.clips else None,
            clipped=clips.any_clipped(),
        )

    def fields(self, exact_total: float, damage: Damage | None, view: View) -> dict[str, Any]:
        """Returns the record's fields, from the host's values."""
        coefficient = self.coefficient
        if view.clips and self.post_clip_norm is not None and coefficient is None:
            # Clipped tensor by tensor or element by element: the whole has shrunk by so much.
            coefficient = min(1.0, self.post_clip_norm / exact_total) if self.clipped else 1.0
        applied, cosine = (exact_total, 1.0) if view.dry_run else (self.post_clip_norm, self.cosine)
        return {
            "total_norm": exact_total,
            "post_clip_norm": applied if damage is None and view.handed_on else None,
            "threshold": self.threshold,
            "coefficient": coefficient,
            "cosine": cosine if self.cosine is not None and view.handed_on else None,
        }


@dataclass(frozen=True, eq=False)
class Layers:
    """Layer by layer: gradients of this step, and weights where they are due."""

    norms: Vector  # of parameters
    p_norms: Vector = None  # of parameters
    weight_norms: Vector = None
    after: Vector = None  # norms of parameters once they are clipped, where no single coefficient tells

    @classmethod
    def of(
        cls, measurement: Measurement, clips: Clips | None, after: Measurement | None, view: View, *, weights: bool
    ) -> Layers:
        """Returns the layers on the device."""
        if not view.per_layer:
            return cls(measurement.norms)
        one_by_one = clips is not None and bool(clips.answers) and clips.single_coefficient is None
        return cls(
            norms=measurement.norms,
            p_norms=p_norms(measurement, view.norm_type) if view.norm_type != 2.0 else None,
            weight_norms=by_layer(measurement.layout, measurement.weight_norms) if weights else None,
            after=after.norms if one_by_one and after is not None else None,
        )

    def fields(self, measurement: Measurement, exact: Tensor, folded: list[float] | None, view: View) -> dict[str, Any]:
        """Returns the record's fields, from the host's values.

        Args:
            measurement: of this step.
            exact: the norms of parameters, those measured again that float32 cannot hold.
            folded: the smallest coefficient of each layer since the last record, where one by one is known.
            view: what records hold.
        """
        if not view.per_layer:
            return {"layers": (), "layer_norms": ()}
        layout = measurement.layout
        norms = by_layer(layout, exact) if self.p_norms is None else _by_layer_p(layout, self.p_norms, view.norm_type)
        return {
            "layers": layout.layers,
            "layer_norms": _where_present(layout, norms.tolist(), measurement.present),
            "weight_norms": None if self.weight_norms is None else tuple(self.weight_norms),
            "layer_shapes": layout.layer_shapes,
            "min_layer_coefficients": self._min_coefficients(layout, exact, folded),
        }

    def _min_coefficients(
        self, layout: Layout, exact: Tensor, folded: list[float] | None
    ) -> tuple[float | None, ...] | None:
        """Returns the smallest coefficient of each layer: what was folded, and what this step's norms say."""
        if not self.after:
            return None if folded is None else tuple(folded)
        raw, clipped = by_layer(layout, exact), by_layer(layout, _on_host(self.after))
        now = (clipped / raw).nan_to_num(1.0).clamp(max=1.0)
        return tuple((torch.fmin(now, _on_host(folded)) if folded else now).tolist())


@dataclass(frozen=True, eq=False)
class Since:
    """What happened since the last record, this step included, and in the run so far."""

    max_layer_norms: Vector
    max_total_norm: Number
    min_coefficient: Number
    min_layer_coefficients: Vector
    num_clipped: Number
    num_nonfinite: Number
    clipped_total: Number
    nonfinite_total: Number
    total_norms: Vector

    @classmethod
    def of(cls, since: SinceLast, counters: Counters, view: View) -> Since:
        """Returns the fold on the device."""
        return cls(
            max_layer_norms=since.max_layer_norms if view.per_layer else None,
            max_total_norm=since.max_total_norm,
            min_coefficient=since.min_coefficient,
            min_layer_coefficients=since.min_layer_coefficients if view.per_layer else None,
            num_clipped=since.num_clipped,
            num_nonfinite=since.num_nonfinite,
            clipped_total=counters.clipped,
            nonfinite_total=counters.nonfinite,
            total_norms=since.total_norms.values(),
        )

    def fields(self, since: SinceLast, counters: Counters, view: View, now: float | None) -> dict[str, Any]:
        """Returns the record's fields, from the host's values; ``now`` is the coefficient of this step."""
        largest = self.max_layer_norms or []
        return {
            "num_steps": since.num_steps,
            "num_clipped": int(self.num_clipped),
            "num_nonfinite": int(self.num_nonfinite),
            "max_layer_norms": _where_present(since.layout, largest, since.present) if view.per_layer else (),
            "max_total_norm": self.max_total_norm,
            "min_coefficient": min(self.min_coefficient, 1.0 if now is None else now) if view.clips else None,
            "clip_rate": self.clipped_total / counters.steps if view.clips else None,
            "nonfinite_total": int(self.nonfinite_total),
            "skipped_total": counters.skipped,
            "total_norms": told(self.total_norms),
            "steps_per_norm": since.total_norms.steps_per_norm,
        }


@torch.no_grad()
def build_record(
    measurement: Measurement,
    judgement: Judgement,
    since: SinceLast,
    counters: Counters,
    view: View,
    *,
    step: int,
    scaler: GradScaler | None = None,
) -> StepRecord:
    """Makes the record of one step.

    Args:
        measurement: the raw gradients.
        judgement: what became of the step.
        since: the steps since the last record, this one included.
        counters: the run so far, this step included.
        view: what records hold in this run.
        step: x-axis of the run.
        scaler: the live loss scaler.
    """
    clips = None if isinstance(judgement, Dropped) else judgement.decision.clips
    after = None if clips is None or _cannot_tell(judgement, clips, view) else clips.after(measurement)
    due = view.per_layer and weights_are_due(counters.steps, since.num_steps)
    totals, layers, fold = on_host(
        Totals.of(measurement, clips, after, view),
        Layers.of(measurement, clips, after, view, weights=due),
        Since.of(since, counters, view),
    )

    damage = _damage(measurement, judgement, totals.total_norm)
    norms, total = _on_host(layers.norms), totals.total_norm
    if damage is None and not isinstance(judgement, Over):
        norms, total = _exact(measurement, norms, total)
    of_totals = totals.fields(total, damage, view)
    clipped = judgement.clipped if isinstance(judgement, Over) else bool(totals.clipped)
    return StepRecord(
        step=step,
        optimizer=view.optimizer,
        num_optimizers=view.num_optimizers,
        clip_ratio=clips.ratio if clips is not None else None,
        dry_run=view.dry_run,
        **_judged(measurement.layout, judgement, damage or judgement.damage, scaler, clipped and not view.dry_run),
        **of_totals,
        **layers.fields(measurement, norms, fold.min_layer_coefficients, view),
        **fold.fields(since, counters, view, of_totals["coefficient"]),
    )


def no_step_record(
    layout: Layout, view: View, step: int, *, waiting: int | None = None, cleared: bool | None = None
) -> StepRecord:
    """Makes the record of a step that did not come: no parameter has a gradient, or nobody steps the optimizer.

    Args:
        layout: the parameters of the optimizer.
        view: what records hold in this run.
        step: x-axis of the run.
        waiting: backward passes since the last step; ``None`` if there is no gradient to step with.
        cleared: whether there was one that something cleared.
    """
    none = (None,) * len(layout.layers) if view.per_layer else ()
    return StepRecord(
        step=step,
        optimizer=view.optimizer,
        num_optimizers=view.num_optimizers,
        layers=layout.layers if view.per_layer else (),
        layer_norms=none,
        total_norm=0.0,
        post_clip_norm=None,
        threshold=None,
        coefficient=None,
        cosine=None,
        verdict="ok",
        nonfinite_layers=(),
        cause=None,
        loss_scale=None,
        num_steps=0,
        num_clipped=0,
        num_nonfinite=0,
        max_layer_norms=none,
        max_total_norm=0.0,
        min_coefficient=None,
        clip_rate=None,
        nonfinite_total=0,
        skipped_total=0,
        layer_shapes=layout.layer_shapes if view.per_layer else None,
        early=True,
        waiting=waiting,
        cleared=cleared,
    )


def _damage(measurement: Measurement, judgement: Judgement, total: float) -> Damage | None:
    """What is wrong with a step that was dropped, or, where nobody guards, with one that went through."""
    if isinstance(judgement, Dropped):
        return judgement.damage
    return None if math.isfinite(total) else inspect(measurement)


def _cannot_tell(judgement: Judgement, clips: Clips, view: View) -> bool:
    """Whether what clipping left is not known any more: gradients are gone that would have to be measured."""
    return isinstance(judgement, Over) and view.clips and clips.single_coefficient is None


def _judged(
    layout: Layout, judgement: Judgement, damage: Damage | None, scaler: GradScaler | None, clipped: bool
) -> dict[str, Any]:
    """The record's fields about what became of the step, and why."""
    drops = scaler is not None and (damage is None or damage.loss is None)  # a scaler asks no loss
    return {
        "verdict": verdict_of(judgement, nonfinite=damage is not None, clipped=clipped, scaled=drops),
        "nonfinite_layers": _layers_of_names(layout, damage.names) if damage else (),
        "cause": damage.cause if damage else None,
        "loss_scale": scaler.get_scale() if scaler else None,  # host sync: a logged step
    }


def weights_are_due(num_steps: int, num_new: int) -> bool:
    """Tells whether a record measures the norms of weights: the first does, and the first in each 50 steps after it.

    Known from counts alone, which a checkpoint holds: a run that is resumed has the same records.

    Args:
        num_steps: of the optimizer in this run, up to this record.
        num_new: how many of them are since the last record.

    Example:
        >>> [step for step in range(1, 200) if weights_are_due(step, 1)]
        [1, 50, 100, 150]
    """
    before = num_steps - num_new
    return before == 0 or num_steps // WEIGHTS_EVERY_N_STEPS > before // WEIGHTS_EVERY_N_STEPS


def _exact(measurement: Measurement, norms: Tensor, total: float) -> tuple[Tensor, float]:
    """Returns the norms on the host, those measured again that float32 cannot hold: it reads 1e-25 as zero."""
    if bool(((norms >= _TINY) & (norms < math.inf)).all()):
        return norms, total
    each = enumerate(zip(measurement.present, norms.tolist(), strict=True))
    doubtful = [index for index, (there, norm) in each if there and not _TINY <= norm < math.inf]
    if not doubtful:
        return norms, total
    again = measure_exactly(measurement.part(measurement.layout.subset(doubtful), doubtful))
    norms[doubtful] = again.norms.to(norms)
    return norms, float(torch.linalg.vector_norm(norms))


def _where_present(layout: Layout, values: Sequence[float], present: Sequence[bool]) -> tuple[float | None, ...]:
    """Returns the values of layers, ``None`` for those of which no parameter had a gradient."""
    if all(present):
        return tuple(values)
    seen = {layer for layer, there in zip(layout.layer_of, present, strict=True) if there}
    return tuple(value if i in seen else None for i, value in enumerate(values))


def _on_host(numbers: Sequence[float]) -> Tensor:
    """Numbers of the host as a tensor there, in double precision, whatever the default device is."""
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _by_layer_p(layout: Layout, norms: Sequence[float], p: float) -> Tensor:
    index, values = torch.tensor(layout.layer_of, device="cpu"), _on_host(norms)
    layers = values.new_zeros(len(layout.layers))
    if math.isinf(p):
        return layers.scatter_reduce(0, index, values, "amax")
    return layers.index_add_(0, index, values**p) ** (1.0 / p)


def _layers_of_names(layout: Layout, names: Sequence[str]) -> tuple[str, ...]:
    layer = dict(zip(layout.names, layout.layer_of, strict=True))
    return tuple(dict.fromkeys(layout.layers[layer[name]] for name in names))
