"""Records from TensorBoard's event files: as much of them as the flow tensor and the list of events hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.hindsight.series import Series
from lightning_gradguard.record import Finding, StepRecord
from lightning_gradguard.report.summary import finding_of
from lightning_gradguard.tensorboard.event_files import stores_of_event_files
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, STEP_STATS
from lightning_gradguard.tensorboard.store import Flow, FlowStore


def stored_records(folder: Path) -> list[StepRecord]:
    """The records of the one run below a folder, by step. Norms are the largest since the record before.

    Raises:
        ValueError: if there is no run in it, or more than one.
    """
    damaged: list[str] = []
    stores = list(stores_of_event_files(folder, damaged))
    runs = sorted({run for _, run, _ in stores})
    if len(runs) != 1:
        what = f"holds several runs ({', '.join(runs[:5])}): name one of them" if runs else "has no gradients"
        raise ValueError("; ".join([f"{folder} {what}", *damaged]))
    return records_of(stores)


def records_of(stores: Sequence[tuple[FlowStore, str, int]]) -> list[StepRecord]:
    """The records of one run, by step, from the stores of its optimizers.

    Args:
        stores: with the name of the run and the index of the optimizer.

    Raises:
        ValueError: if one cannot be read; the message names the run.
    """
    found: list[StepRecord] = []
    for store, run, optimizer in stores:
        findings = [finding_of(values) for values in store.events(run, optimizer)["findings"]]
        records = _records(store.flow(run, optimizer), optimizer, len(stores), findings)
        found += _with_norms(records, store.norms(run, optimizer))
    return sorted(found, key=lambda record: (record.step, record.optimizer))


def _records(flow: Flow, optimizer: int, num_optimizers: int, findings: list[Finding]) -> list[StepRecord]:
    records = []
    for step, matrix in zip(flow.steps.tolist(), flow.matrices.astype(np.float64), strict=True):
        head: dict[str, Any] = dict(zip(STEP_STATS, map(_known, matrix[:HEAD_ROWS].ravel()), strict=True))
        due = [finding for finding in findings if finding.step <= step]
        findings = findings[len(due) :] if due == findings[: len(due)] else [f for f in findings if f not in due]
        records.append(_record(flow, step, matrix[HEAD_ROWS:], head, optimizer, num_optimizers, tuple(due)))
    return records


def _with_norms(records: list[StepRecord], series: Series) -> list[StepRecord]:
    """The records, each with the total norms of the steps since the one before it."""
    if not len(series):
        return records
    ends = np.searchsorted(series.steps, [record.step for record in records], side="right").tolist()
    ends[-1] = len(series)
    norms = [series.norms[start:end].tolist() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    every = series.steps_per_norm
    return [replace(r, total_norms=tuple(n), steps_per_norm=every) for r, n in zip(records, norms, strict=True)]


def _record(
    flow: Flow,
    step: int,
    rows: NDArray[np.float64],
    head: dict[str, Any],
    optimizer: int,
    num_optimizers: int,
    findings: tuple[Finding, ...],
) -> StepRecord:
    norms, ratios, updates, coefficients = (tuple(map(_known, column)) for column in rows.T)
    total = math.nan if head["total_norm"] is None else head["total_norm"]
    bad = tuple(n for n, x in zip(flow.layers, norms, strict=True) if x is not None and not math.isfinite(x))
    counts: dict[str, Any] = {key: int(head[key] or 0) for key in ("num_steps", "num_clipped", "num_nonfinite")}
    return StepRecord(
        step=step,
        optimizer=optimizer,
        num_optimizers=num_optimizers,
        layers=flow.layers,
        layer_norms=norms,
        total_norm=total,
        cosine=None,
        nonfinite_layers=bad,
        **_judged(total, clipped=bool(head["num_clipped"]) and not flow.dry_run),
        **{name: head[name] for name in ("post_clip_norm", "threshold", "coefficient", "loss_scale")},
        **counts,
        max_layer_norms=norms,
        max_total_norm=total if math.isfinite(total) else 0.0,
        min_coefficient=head["coefficient"],
        clip_rate=None,
        nonfinite_total=0,
        skipped_total=0,
        weight_norms=_weights(norms, ratios),
        findings=findings,
        layer_shapes=flow.shapes,
        min_layer_coefficients=coefficients if any(value is not None for value in coefficients) else None,
        update_ratios=updates if any(value is not None for value in updates) else None,
        clip_ratio=flow.clip_ratio,
        dry_run=flow.dry_run,
    )


def _judged(total: float, *, clipped: bool) -> dict[str, Any]:
    """Returns the verdict on a step and its cause, as far as its total norm tells."""
    if math.isfinite(total):
        return {"verdict": "clipped" if clipped else "ok", "cause": None}
    return {"verdict": "nonfinite", "cause": "nan" if math.isnan(total) else "inf"}


def _known(value: float) -> float | None:
    """The value, or ``None`` for the marks of *no gradient* and *not measured*."""
    return None if value < 0 else float(value)


def _weights(norms: tuple[float | None, ...], ratios: tuple[float | None, ...]) -> tuple[float | None, ...] | None:
    weights = tuple(
        norm / ratio if norm is not None and ratio and math.isfinite(norm) and math.isfinite(ratio) else None
        for norm, ratio in zip(norms, ratios, strict=True)
    )
    return weights if any(weight is not None for weight in weights) else None
