"""Several records as one, the worst of each: how a bounded file holds a run of any length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lightning_gradguard.record import StepRecord

_QUIET = ("ok", "clipped")
# Places for total norms in a folded record, beside its layers: about a third of its bytes, at least so many.
_LEAST_NORMS = 256
_NORMS_PER_LAYER = 4


def is_quiet(record: StepRecord) -> bool:
    """Whether nothing happened at a record that is worth a line of its own."""
    return record.verdict in _QUIET and not record.findings


def fold(earlier: StepRecord, later: StepRecord) -> StepRecord:
    """Two records of the same optimizer and layers as one, at the step of the later one.

    Counts add up, norms take the largest, coefficients the smallest, and of two verdicts the bad one stays. What only
    one of them measured (weights, updates, activations) is kept, the later one first; the loss is the mean over their
    steps. The total norms of their steps follow each other while there is room for them; then neighbors become one.
    """
    norms, steps_per_norm = _total_norms(earlier, later)
    bad = earlier if earlier.verdict not in _QUIET and later.verdict in _QUIET else later
    return replace(
        later,
        verdict="clipped" if "clipped" in (earlier.verdict, bad.verdict) and bad.verdict == "ok" else bad.verdict,
        cause=bad.cause,
        nonfinite_layers=bad.nonfinite_layers,
        total_norm=bad.total_norm,
        num_steps=earlier.num_steps + later.num_steps,
        num_clipped=earlier.num_clipped + later.num_clipped,
        num_nonfinite=earlier.num_nonfinite + later.num_nonfinite,
        max_layer_norms=_each(max, earlier.max_layer_norms, later.max_layer_norms),
        max_total_norm=max(earlier.max_total_norm, later.max_total_norm),
        min_coefficient=_one(min, earlier.min_coefficient, later.min_coefficient),
        min_layer_coefficients=_both(min, earlier.min_layer_coefficients, later.min_layer_coefficients),
        findings=(*earlier.findings, *later.findings),
        loss=_mean_loss(earlier, later),
        weight_norms=later.weight_norms or earlier.weight_norms,
        update_ratios=later.update_ratios or earlier.update_ratios,
        activations=later.activations or earlier.activations,
        temporal_norms=later.temporal_norms or earlier.temporal_norms,
        total_norms=norms,
        steps_per_norm=steps_per_norm,
    )


def halved(records: Iterable[StepRecord], *, keep_notable: bool) -> list[StepRecord]:
    """Half as many records: neighbors of one optimizer and one set of layers are folded, two and two.

    Args:
        records: in the order in which they were made.
        keep_notable: whether a record at which something happened stays by itself.
    """
    kept: list[StepRecord] = []
    open_at: dict[int, int] = {}  # by optimizer: where the record is that waits for its neighbor
    for record in records:
        at = open_at.pop(record.optimizer, None)
        foldable = not keep_notable or is_quiet(record)
        if at is not None and foldable and kept[at].layers == record.layers:
            kept[at] = fold(kept[at], record)
            continue
        if foldable:
            open_at[record.optimizer] = len(kept)
        kept.append(record)
    return kept


Pick = Callable[[float, float], float]


def _one(pick: Pick, left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return right if left is None else left
    return pick(left, right)


def _each(pick: Pick, left: tuple[float | None, ...], right: tuple[float | None, ...]) -> tuple[float | None, ...]:
    return tuple(_one(pick, a, b) for a, b in zip(left, right, strict=True))


def _both(
    pick: Pick, left: tuple[float | None, ...] | None, right: tuple[float | None, ...] | None
) -> tuple[float | None, ...] | None:
    return _each(pick, left, right) if left and right else right or left


def _total_norms(earlier: StepRecord, later: StepRecord) -> tuple[tuple[float, ...] | None, int]:
    """Returns the norms of both, each standing for as many steps, and how many that is."""
    known = [record for record in (earlier, later) if record.total_norms is not None]
    if not known:
        return None, 1
    every = max(record.steps_per_norm for record in known)
    norms = tuple(
        norm for record in known for norm in _thinned(record.total_norms or (), every // record.steps_per_norm)
    )
    room = max(_LEAST_NORMS, _NORMS_PER_LAYER * len(later.layers))
    return (norms, every) if len(norms) <= room else (_thinned(norms, 2), 2 * every)


def _thinned(norms: Sequence[float], every: int) -> tuple[float, ...]:
    """Returns the largest finite of each so many neighbors, NaN where none is finite."""
    if every <= 1:
        return tuple(norms)
    groups = (norms[start : start + every] for start in range(0, len(norms), every))
    return tuple(max(filter(math.isfinite, group), default=math.nan) for group in groups)


def _mean_loss(earlier: StepRecord, later: StepRecord) -> float | None:
    if earlier.loss is None or later.loss is None:
        return earlier.loss if later.loss is None else later.loss
    steps = earlier.num_steps + later.num_steps
    return (earlier.loss * earlier.num_steps + later.loss * later.num_steps) / steps if steps else later.loss
