"""The flow tensor: one record as one small float32 matrix, and how such matrices are put together again.

The matrix has two head rows with the step as a whole (:data:`STEP_STATS`), then one row per layer with
:data:`LAYER_STATS`. Values that are no numbers have marks of their own, since JSON has none for them and since
*no gradient* is not zero: NaN and infinity stand for themselves, :data:`NO_GRADIENT` and :data:`NOT_MEASURED` are
negative, which no real value is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.record import StepRecord
from lightning_gradguard.tensorboard.scalars import as_float32, to_float32

PLUGIN_NAME = "gradguard"
VERSION = 1
LAYER_STATS = ("norm", "ratio", "update", "coefficient")
STEP_STATS = (
    *("total_norm", "post_clip_norm", "threshold", "coefficient"),
    *("num_steps", "num_clipped", "num_nonfinite", "loss_scale"),
)
HEAD_ROWS = len(STEP_STATS) // len(LAYER_STATS)
NO_GRADIENT = -1.0
NOT_MEASURED = -2.0

# What AGC takes for a weight norm below it (Brock et al. 2021, arXiv:2102.06171): a zero bias has no infinite ratio.
MIN_WEIGHT_NORM = 1e-3

Array = NDArray[np.float32]


def flow_matrix(record: StepRecord) -> Array:
    """One record as float32 ``[HEAD_ROWS + layers, 4]``: largest norm, smallest coefficient since the last record.

    The ratio is gradient norm over weight norm, the latter at least :data:`MIN_WEIGHT_NORM`. A non-finite step shows
    NaN or infinity in the layers where it happened, whatever the finite steps before it were.
    """
    matrix = np.full((HEAD_ROWS + len(record.layers), len(LAYER_STATS)), NOT_MEASURED, dtype=np.float32)
    matrix[:HEAD_ROWS] = np.array(_step_values(record), dtype=np.float32).reshape(HEAD_ROWS, -1)
    rows = matrix[HEAD_ROWS:]
    norms, has_gradient = _layer_norms(record)
    rows[:, 0] = as_float32(norms)
    if record.weight_norms is not None:
        weights, known = _column(record.weight_norms)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity over infinity is NaN, and shown as such
            ratios = norms / np.maximum(weights, MIN_WEIGHT_NORM)
        rows[known, 1] = as_float32(ratios)[known]
    if record.update_ratios is not None:
        updates, known = _column(record.update_ratios)
        rows[known, 2] = as_float32(updates)[known]
    rows[~has_gradient, :3] = NO_GRADIENT
    if record.min_layer_coefficients is not None:
        coefficients, known = _column(record.min_layer_coefficients)
        rows[known, 3] = as_float32(coefficients)[known]
    elif record.min_coefficient is not None:
        rows[:, 3] = to_float32(record.min_coefficient)
    return matrix


def fold(earlier: Array, later: Array) -> Array:
    """Two matrices of the same layers as one, the worst of each: what a column shows that stands for several.

    NaN wins over infinity, infinity over the largest norm, any number over *no gradient*; coefficients take the
    smallest; counts add up; threshold and loss scale are the later ones.
    """
    folded = np.maximum(earlier, later)
    folded[HEAD_ROWS:, 3] = _smallest(earlier[HEAD_ROWS:, 3], later[HEAD_ROWS:, 3])
    old, new = earlier[:HEAD_ROWS].ravel(), later[:HEAD_ROWS].ravel()
    head = np.maximum(old, new)
    head[2], head[7] = new[2], new[7]
    head[3] = _smallest(old[3], new[3])
    head[4:7] = old[4:7] + new[4:7]
    folded[:HEAD_ROWS] = head.reshape(HEAD_ROWS, -1)
    return folded


def flow_metadata(record: StepRecord) -> bytes:
    """What a reader must know beside the numbers: layer names in depth order, input first, their shapes, columns."""
    content: dict[str, Any] = {
        "version": VERSION,
        "kind": "flow",
        "optimizer": record.optimizer,
        "num_optimizers": record.num_optimizers,
        "layers": record.layers,
        "shapes": record.layer_shapes,
        "layer_stats": LAYER_STATS,
        "step_stats": STEP_STATS,
        "clip_ratio": record.clip_ratio,
    }
    return json.dumps(content).encode()


def layout_hash(layers: Sequence[str]) -> str:
    """Eight hex digits that change with the layers: a tag carries them, since its metadata is read only once."""
    return _hash(tuple(layers))


@functools.lru_cache(maxsize=32)
def _hash(layers: tuple[str, ...]) -> str:
    return hashlib.blake2b("\n".join(layers).encode(), digest_size=4).hexdigest()


def _step_values(record: StepRecord) -> list[float]:
    total = record.total_norm if not math.isfinite(record.total_norm) else record.max_total_norm
    optional = (record.post_clip_norm, record.threshold, record.min_coefficient)
    counts = [float(record.num_steps), float(record.num_clipped), float(record.num_nonfinite)]
    values = [to_float32(total), *(NOT_MEASURED if value is None else to_float32(value) for value in optional)]
    return [*values, *counts, NOT_MEASURED if record.loss_scale is None else record.loss_scale]


def _layer_norms(record: StepRecord) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The norm that each layer shows, and whether it has one.

    The largest over all steps since the last record; a step that the guard stopped is not in ``max_layer_norms``.
    """
    now, has_now = _column(record.layer_norms)
    before, has_before = _column(record.max_layer_norms)
    norms = np.maximum(np.where(has_now, now, -np.inf), np.where(has_before, before, -np.inf))
    has_gradient = has_now | has_before
    for row in map(record.layers.index, record.nonfinite_layers):
        norms[row] = math.inf if has_now[row] and math.isinf(now[row]) else math.nan
        has_gradient[row] = True
    return norms, has_gradient


def _column(values: Sequence[float | None]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values as an array, NaN for ``None``, and which of them are not ``None``."""
    column = np.array(values, dtype=np.float64)
    if np.isnan(column).any():
        return column, np.array([value is not None for value in values], dtype=np.bool_)
    return column, np.ones(len(values), dtype=np.bool_)


def _smallest(left: Any, right: Any) -> Any:
    """The smaller of two where both are measured, else the one that is."""
    return np.where(left < 0, right, np.where(right < 0, left, np.minimum(left, right)))
