"""Records as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lightning_gradguard.record import LastWeights, StepRecord

_STEP_COLUMNS = (
    *("step", "optimizer", "total_norm", "post_clip_norm", "max_total_norm", "threshold", "coefficient", "cosine"),
    *("verdict", "cause", "loss", "loss_scale", "num_steps", "num_clipped", "num_nonfinite", "clip_rate"),
    *("nonfinite_total", "skipped_total"),
)


def rows_by(by: str, records: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """A row for each layer of each record, or for each record.

    Raises:
        ValueError: if ``by`` is neither ``"layer"`` nor ``"step"``.
    """
    if by == "step":
        return [_of_step(record) for record in records]
    if by == "layer":
        weights = LastWeights()
        return [row for record in records for row in _of_layers(weights.fill(record))]
    raise ValueError(f"by must be 'layer' or 'step', got {by!r}")


def _of_step(record: StepRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _STEP_COLUMNS}
    return {**row, "findings": ", ".join(finding.rule for finding in record.findings)}


def _of_layers(record: StepRecord) -> Iterator[dict[str, Any]]:
    nothing = (None,) * len(record.layers)
    columns = zip(
        record.layers,
        record.depth or nothing,
        record.layer_norms,
        record.max_layer_norms or nothing,
        record.weight_norms or nothing,
        record.update_ratios or nothing,
        strict=True,
    )
    names = ("layer", "depth", "norm", "max_norm", "weight_norm", "update_ratio")
    for values in columns:
        yield {"step": record.step, "optimizer": record.optimizer, **dict(zip(names, values, strict=True))}
