"""The flow tensor: one record as one small float32 matrix, and how such matrices are put together again.

The matrix has three head rows with the step as a whole (:data:`STEP_STATS`), then one row per layer with
:data:`LAYER_STATS`. Values that are no numbers have marks of their own, since JSON has none for them and since
*no gradient* is not zero: NaN and infinity stand for themselves, :data:`NO_GRADIENT` and :data:`NOT_MEASURED` are
negative, which no norm, ratio or count is. A loss may be negative: one that is not known is :data:`NO_LOSS`.

What the columns of a matrix are stands in its metadata, so that logs of another version are read by name: what they
lack is not measured, and what is unknown here is left out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.record import StepRecord
from lightning_gradguard.tensorboard.scalars import as_float32, to_float32

PLUGIN_NAME = "gradguard"
VERSION = 2
LAYER_STATS = ("norm", "ratio", "update", "coefficient")
STEP_STATS = (
    *("total_norm", "post_clip_norm", "threshold", "coefficient"),
    *("num_steps", "num_clipped", "num_nonfinite", "loss_scale"),
    *("loss", "clip_rate", "nonfinite_total", "early"),
)
HEAD_ROWS = len(STEP_STATS) // len(LAYER_STATS)
NO_GRADIENT = -1.0
NOT_MEASURED = -2.0
NO_LOSS = -math.inf

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
    smallest; counts add up; threshold, loss scale and totals of the run are the later ones.
    """
    folded = np.empty_like(earlier)
    for name, column in _LAYER_COLUMNS.items():
        folded[HEAD_ROWS:, column] = _FOLDS.get(name, np.maximum)(
            earlier[HEAD_ROWS:, column], later[HEAD_ROWS:, column]
        )
    old, new, head = (matrix[:HEAD_ROWS].reshape(-1) for matrix in (earlier, later, folded))
    for name, place in _STEP_PLACES.items():
        head[place] = _FOLDS.get(name, np.maximum)(old[place], new[place])
    return folded


def layout_of(record: StepRecord) -> dict[str, Any]:
    """What a reader must know of a record's rows: layers as they are in the matrix, their kinds, their places."""
    return {
        "layers": record.layers,
        "shapes": record.layer_shapes,
        "kinds": record.layer_kinds,
        "depth": record.depth,
        "layer_stats": LAYER_STATS,
        "step_stats": STEP_STATS,
        "clip_ratio": record.clip_ratio,
        "dry_run": record.dry_run,
    }


def flow_metadata(record: StepRecord) -> bytes:
    """What a reader must know beside the numbers, as JSON: version, optimizer, and :func:`layout_of` the rows."""
    about = {"version": VERSION, "kind": "flow", "optimizer": record.optimizer}
    return json.dumps(about | {"num_optimizers": record.num_optimizers} | layout_of(record)).encode()


def norms_vector(record: StepRecord) -> Array:
    """The total norms of the steps since the last record as a float32 vector: how many steps each stands for, first."""
    return np.array((record.steps_per_norm, *(record.total_norms or ())), dtype=np.float32)


def norms_metadata(record: StepRecord) -> bytes:
    """What a reader must know beside :func:`norms_vector`, as JSON."""
    return json.dumps({"version": VERSION, "kind": "norms", "optimizer": record.optimizer}).encode()


def layout_hash(record: StepRecord) -> str:
    """Eight hex digits that change with the rows: a tag carries them, since its metadata is read only once.

    The places in the forward pass count too: a layer that runs for the first time has none before.
    """
    return _hash(record.layers, record.depth)


@functools.lru_cache(maxsize=32)
def _hash(layers: tuple[str, ...], depth: tuple[int | None, ...] | None) -> str:
    return hashlib.blake2b("\n".join((*layers, str(depth))).encode(), digest_size=4).hexdigest()


def _step_values(record: StepRecord) -> list[float]:
    total = record.total_norm if not math.isfinite(record.total_norm) else record.max_total_norm
    values: dict[str, float | None] = {
        "total_norm": total,
        "post_clip_norm": record.post_clip_norm,
        "threshold": record.threshold,
        "coefficient": record.min_coefficient,
        "num_steps": record.num_steps,
        "num_clipped": record.num_clipped,
        "num_nonfinite": record.num_nonfinite,
        "loss_scale": record.loss_scale,
        "loss": NO_LOSS if record.loss is None else record.loss,
        "clip_rate": record.clip_rate,
        "nonfinite_total": record.nonfinite_total,
        "early": getattr(record, "early", None),  # records of a run without early samples have no such mark
    }
    return [NOT_MEASURED if (value := values[name]) is None else to_float32(value) for name in STEP_STATS]


def _layer_norms(record: StepRecord) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns the norm that each layer shows, and whether it has one.

    The largest over all steps since the last record; a step that the guard stopped is not in ``max_layer_norms``.
    """
    now, has_now = _column(record.layer_norms)
    before, has_before = _column(record.max_layer_norms)
    norms = np.maximum(np.where(has_now, now, -np.inf), np.where(has_before, before, -np.inf))
    has_gradient = has_now | has_before
    for row in [record.layers.index(layer) for layer in record.nonfinite_layers if layer in record.layers]:
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
    """Returns the smaller of two where both are measured, else the one that is."""
    return np.where(left < 0, right, np.where(right < 0, left, np.minimum(left, right)))


def _later(earlier: Any, later: Any) -> Any:
    return later


# How two values of one name become one; those that are not here take the largest.
_FOLDS: dict[str, Callable[[Any, Any], Any]] = {
    "coefficient": _smallest,
    "num_steps": np.add,
    "num_clipped": np.add,
    "num_nonfinite": np.add,
    "threshold": _later,
    "loss_scale": _later,
    "clip_rate": _later,
    "nonfinite_total": _later,
}
_LAYER_COLUMNS = {name: column for column, name in enumerate(LAYER_STATS)}
_STEP_PLACES = {name: place for place, name in enumerate(STEP_STATS)}
