"""The numbers of a record under the names that dashboards show."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.record import StepRecord

_LARGEST_FLOAT32 = 3.4028234663852886e38
_SMALLEST_FLOAT32 = 1.401298464324817e-45


def scalar_values(record: StepRecord) -> dict[str, float]:
    """Tag to value for one record, for TensorBoard and for any other logger (``log_metrics``).

    ``None`` is left out; NaN and infinity are kept, they are what a dashboard should show. With several optimizers
    each tag names its own: ``grad_norm/opt0/<layer>``, ``grad_norm_total/pre_clip/opt0``.

    ``grad_norm_total/pre_clip`` and the layers are those of the step at hand; ``grad_norm_total/largest`` is the
    largest finite total norm of the steps since the last record, where there are several, so that a spike between two
    logged steps is seen.

    Args:
        record: one step.

    Example:
        >>> sorted(scalar_values(record))[:2]  # doctest: +SKIP
        ['grad_norm/encoder.0', 'grad_norm/encoder.1']
    """
    several = record.num_optimizers > 1
    layer_prefix = f"grad_norm/opt{record.optimizer}/" if several else "grad_norm/"
    suffix = f"/opt{record.optimizer}" if several else ""
    totals = {
        "grad_norm_total/pre_clip": record.total_norm,
        "grad_norm_total/largest": record.max_total_norm if record.num_steps > 1 else None,
        "grad_norm_total/post_clip": record.post_clip_norm,
        "grad_norm_total/threshold": record.threshold,
        "gradguard/coefficient": record.coefficient,
        "gradguard/cosine": record.cosine,
        "gradguard/clipped_fraction": record.clip_rate,
        "gradguard/loss_scale": record.loss_scale,
        "gradguard/nonfinite_total": float(record.nonfinite_total),
        "gradguard/skipped_steps": float(record.skipped_total),
    }
    values = {tag + suffix: value for tag, value in totals.items() if value is not None}
    for layer, norm in zip(record.layers, record.layer_norms, strict=True):
        if norm is not None:
            values[layer_prefix + layer] = norm
    return values


def to_float32(value: float) -> float:
    """The nearest that a float32 holds of the same kind: a finite value stays finite, and a small one is not zero."""
    if value == 0.0 or not math.isfinite(value):
        return value
    return math.copysign(min(max(abs(value), _SMALLEST_FLOAT32), _LARGEST_FLOAT32), value)


def as_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns an array as float32: finite values stay finite, and small ones are not zero."""
    held = np.copysign(np.clip(np.abs(values), _SMALLEST_FLOAT32, _LARGEST_FLOAT32), values)
    kept = (values == 0.0) | ~np.isfinite(values)
    return np.where(kept, values, held).astype(np.float32)
