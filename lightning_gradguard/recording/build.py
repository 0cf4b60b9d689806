"""From device tensors to a record: one copy to the host, on logged steps only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lightning_gradguard.clip.apply import cosine
from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.guard.damage import Damage, inspect
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, by_layer, measure_exactly, p_norms
from lightning_gradguard.record import StepRecord, Verdict
from lightning_gradguard.recording.since_last import Counters, Window

# Below this a float32 norm has lost squares to underflow: such gradients are measured again, exactly.
_TINY = 1e-15

# Norms of the weights are a pass of their own, as long as that over the gradients, and weights change slowly.
WEIGHTS_EVERY_N_STEPS = 50


class HostValues(dict[str, "list[float] | float | None"]):
    """Named values that have crossed to the host."""

    def many(self, key: str) -> list[float]:
        """A vector; empty where it was not asked for."""
        value = self.get(key)
        return value if isinstance(value, list) else []

    def one(self, key: str) -> float:
        """A number."""
        value = self[key]
        assert isinstance(value, float | int)
        return value

    def maybe(self, key: str) -> float | None:
        """A number, or ``None`` where it does not apply."""
        return None if self[key] is None else self.one(key)


def to_host(values: Mapping[str, Tensor | float | None]) -> HostValues:
    """Brings many tensors of shape ``[n]`` or ``[]`` to the host in a single copy; the rest passes through."""
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    device = next(iter(tensors.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = torch.cat([t.reshape(-1).to(device, dtype) for t in tensors.values()]).tolist()  # host sync: a logged step
    result = HostValues({key: value for key, value in values.items() if not isinstance(value, Tensor)})
    start = 0
    for key, tensor in tensors.items():
        chunk = flat[start : start + tensor.numel()]
        result[key] = chunk if tensor.dim() else chunk[0]
        start += tensor.numel()
    return result


@torch.no_grad()
def build_record(
    measurement: Measurement,
    *,
    step: int,
    optimizer: int,
    num_optimizers: int,
    window: Window,
    counters: Counters,
    per_layer: bool,
    norm_type: float,
    clips_at_all: bool,
    clips: Clips | None = None,
    after: Measurement | None = None,
    damage: Damage | None = None,
    dropped_as: Verdict = "skipped",
    scaler: GradScaler | None = None,
) -> StepRecord:
    """Makes the record of one step.

    Args:
        measurement: the raw gradients.
        step: x-axis of the run.
        optimizer: index of the optimizer.
        num_optimizers: how many there are.
        window: the steps since the last record, this one included.
        counters: the run so far, this step included.
        per_layer: whether to hold layers.
        norm_type: p of the layer norms.
        clips_at_all: whether a policy is at work in this run.
        clips: the policies' answers; ``None`` for a step that did not get so far.
        after: the gradients after clipping; ``None`` likewise.
        damage: what is wrong with a step that the guard stopped; else ``None``.
        dropped_as: what became of such a step.
        scaler: the live loss scaler.
    """
    layout = measurement.layout
    with_weights = per_layer and weights_are_due(counters.steps, window.num_steps)
    host = to_host(
        {
            "norms": measurement.norms,
            "total": measurement.total,
            "post": after.total if after else None,
            "cosine": cosine(measurement, after) if after and clips_at_all else None,
            "threshold": clips.threshold if clips else None,
            "clipped": clips.any_clipped() if clips else None,
            "coefficient": clips.single_coefficient if clips else None,
            "p_norms": p_norms(measurement, norm_type) if per_layer and norm_type != 2.0 else None,
            "weights": by_layer(layout, measurement.weight_norms) if with_weights else None,
            "max_layers": window.max_layer_norms if per_layer else None,
            "max_total": window.max_total_norm,
            "min_coefficient": window.min_coefficient,
            "min_layer_coefficients": window.min_layer_coefficients if per_layer else None,
            "after_norms": after.norms if after and clips and per_layer and clips.single_coefficient is None else None,
            "num_clipped": window.num_clipped,
            "num_nonfinite": window.num_nonfinite,
            "clipped_total": counters.clipped,
            "nonfinite_total": counters.nonfinite,
        }
    )
    norms, total = torch.tensor(host.many("norms"), dtype=torch.float64), host.one("total")
    stopped = damage is not None
    if damage is None and not math.isfinite(total):  # nobody guards: say at least what went through
        damage = inspect(measurement)
    if damage is None:
        norms, total = _exact(measurement, norms, total)

    def layers_of(values: Sequence[float], present: Sequence[bool]) -> tuple[float | None, ...]:
        if all(present):
            return tuple(values)
        seen = {layer for layer, there in zip(layout.layer_of, present, strict=True) if there}
        return tuple(value if i in seen else None for i, value in enumerate(values))

    post, coefficient, clipped = host.maybe("post"), host.maybe("coefficient"), bool(host.maybe("clipped"))
    if clips_at_all and post is not None and coefficient is None:
        coefficient = min(1.0, post / total) if clipped else 1.0
    layer_norms = by_layer(layout, norms) if norm_type == 2.0 else _by_layer_p(layout, host.many("p_norms"), norm_type)
    verdict: Verdict
    if damage is not None:
        verdict = dropped_as if stopped else "overflow" if scaler else "nonfinite"
    else:
        verdict = "clipped" if clipped else "ok"
    max_layers = host.many("max_layers")
    return StepRecord(
        step=step,
        optimizer=optimizer,
        num_optimizers=num_optimizers,
        layers=layout.layers if per_layer else (),
        layer_norms=layers_of(layer_norms.tolist(), measurement.present) if per_layer else (),
        total_norm=total,
        post_clip_norm=post if damage is None else None,
        threshold=host.maybe("threshold"),
        coefficient=coefficient,
        cosine=host.maybe("cosine"),
        verdict=verdict,
        nonfinite_layers=_layers_of_names(layout, damage.names) if damage else (),
        cause=damage.cause if damage else None,
        loss_scale=scaler.get_scale() if scaler else None,  # host sync: a logged step
        num_steps=window.num_steps,
        num_clipped=int(host.one("num_clipped")),
        num_nonfinite=int(host.one("num_nonfinite")),
        max_layer_norms=layers_of(max_layers, window.present) if per_layer else (),
        max_total_norm=host.one("max_total"),
        min_coefficient=host.one("min_coefficient") if clips_at_all else None,
        clip_rate=host.one("clipped_total") / counters.steps if clips_at_all else None,
        nonfinite_total=int(host.one("nonfinite_total")),
        skipped_total=counters.skipped,
        weight_norms=tuple(host.many("weights")) if with_weights else None,
        layer_shapes=layout.layer_shapes if per_layer else None,
        min_layer_coefficients=_layer_coefficients(layout, norms, host) if clips and clips.answers else None,
        clip_ratio=clips.ratio if clips else None,
    )


def weights_are_due(num_steps: int, num_new: int) -> bool:
    """Whether a record measures the norms of the weights: the first does, and the first in each 50 steps after it.

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
    """The norms on the host, those measured again that float32 cannot hold: it reads 1e-25 as zero."""
    if bool(((norms >= _TINY) & (norms < math.inf)).all()):
        return norms, total
    each = enumerate(zip(measurement.present, norms.tolist(), strict=True))
    doubtful = [index for index, (there, norm) in each if there and not _TINY <= norm < math.inf]
    if not doubtful:
        return norms, total
    again = measure_exactly(measurement.part(measurement.layout.subset(doubtful), doubtful))
    norms[doubtful] = again.norms.to(norms)
    return norms, float(torch.linalg.vector_norm(norms))


def _layer_coefficients(layout: Layout, norms: Tensor, host: HostValues) -> tuple[float | None, ...] | None:
    """The smallest coefficient of each layer: what the window folded, and what this step's norms say."""
    if not (after := host.many("after_norms")):
        return None
    raw, clipped = by_layer(layout, norms), by_layer(layout, torch.tensor(after, dtype=torch.float64))
    now = (clipped / raw).nan_to_num(1.0).clamp(max=1.0)
    folded = host.many("min_layer_coefficients")
    return tuple((torch.fmin(now, torch.tensor(folded, dtype=torch.float64)) if folded else now).tolist())


def _by_layer_p(layout: Layout, norms: Sequence[float], p: float) -> Tensor:
    index, values = torch.tensor(layout.layer_of), torch.tensor(norms, dtype=torch.float64)
    layers = torch.zeros(len(layout.layers), dtype=torch.float64)
    if math.isinf(p):
        return layers.scatter_reduce(0, index, values, "amax")
    return layers.index_add_(0, index, values**p) ** (1.0 / p)


def _layers_of_names(layout: Layout, names: Sequence[str]) -> tuple[str, ...]:
    layer = dict(zip(layout.names, layout.layer_of, strict=True))
    return tuple(dict.fromkeys(layout.layers[layer[name]] for name in names))
