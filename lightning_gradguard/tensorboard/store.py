"""Reads back what the sink wrote, through TensorBoard's own data provider."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter

from lightning_gradguard.hindsight.series import Series, join, pieces_of
from lightning_gradguard.record import forward_order
from lightning_gradguard.tensorboard.flow import (
    HEAD_ROWS,
    LAYER_STATS,
    NO_LOSS,
    NOT_MEASURED,
    PLUGIN_NAME,
    STEP_STATS,
    Array,
    fold,
)
from lightning_gradguard.tensorboard.overview import summarize

# TensorBoard's data server sends no more than 256 MiB at once. A user who has it keep more than our default of 1,000
# columns gets as many of them as fit.
_MAX_BYTES = 200_000_000
_MAX_EVENTS = 1000
_MAX_EVENTS_IN_LIST = 10  # a list of many runs reads fewer; what was written last is always among them

Listed = dict[str, dict[str, tuple[Any, dict[str, Any]]]]  # run, tag, then the series and what was written about it


@dataclass(frozen=True)
class Flow:
    """The picture of one optimizer of one run.

    Attributes:
        layers: names in the order of the forward pass, input first.
        shapes: shapes of each layer in words, empty where unknown.
        kinds: class of the module that owns each layer, empty where unknown.
        steps: step of each column, strictly increasing, int64 ``[columns]``.
        wall_times: seconds since 1970 at which each was written, float64 ``[columns]``.
        matrices: float32 ``[columns, HEAD_ROWS + layers, stats]``, see :mod:`lightning_gradguard.tensorboard.flow`.
        clip_ratio: the gradient-to-weight ratio from which the policy clips, where it goes by one.
        dry_run: whether the policy only said what it would have clipped.
    """

    layers: tuple[str, ...]
    shapes: tuple[str, ...]
    kinds: tuple[str, ...]
    steps: NDArray[np.int64]
    wall_times: NDArray[np.float64]
    matrices: Array
    clip_ratio: float | None
    dry_run: bool = False


@dataclass(frozen=True)
class Column:
    """One record as it was read: its step, when it was written, and its matrix."""

    step: int
    wall_time: float
    matrix: Array


class FlowStore:
    """The flow data of one experiment.

    Args:
        provider: TensorBoard's data provider, of whichever loader.
        context: of the request; reading files without a server has an empty one.
        experiment: id of the experiment; TensorBoard on a folder has one, with an empty id.

    Attributes:
        unreadable: runs of which nothing can be read, with the reason; filled by :meth:`runs`.
    """

    def __init__(self, provider: DataProvider, context: RequestContext | None = None, experiment: str = "") -> None:
        self._provider = provider
        self._context = context or RequestContext()
        self._experiment = experiment
        self.unreadable: dict[str, str] = {}

    def runs(self) -> list[dict[str, Any]]:
        """Returns what the list of runs shows of each that has flow data, see :func:`summarize`; the newest first.

        Two reads for all runs together, the last column of each and its events: a hundred runs cost as many requests
        to the data server as one. A run that cannot be read is named in ``unreadable`` and hides no other.
        """
        listed = self._list(None)
        last = self._read_kind(listed, "flow", limit=1)
        events = self._read_kind(listed, "events", limit=_MAX_EVENTS_IN_LIST)
        found = []
        for run in listed.keys() & last.keys() - self.unreadable.keys():
            try:
                matrices = _last_matrices(last[run], listed[run])
                found.append(summarize(run, matrices, _payloads(events.get(run, {}))) | _extent(listed[run]))
            except Exception as error:  # whatever a file holds that we did not write
                self.unreadable[run] = _not_ours(error)
        return sorted(found, key=lambda run: (-float(run["wall_time"]), run["name"]))

    def flow(self, run: str, optimizer: int) -> Flow:
        """Returns the picture of one optimizer; layer sets that changed on the way are merged by name.

        Raises:
            KeyError: if there is none; the message names what there is.
            ValueError: if it cannot be read; the message names the run.
        """
        try:
            return self._flow(run, optimizer)
        except KeyError:
            raise
        except Exception as error:  # whatever a file holds that we did not write
            raise ValueError(f"run {run!r} cannot be read: {error}") from error

    def _flow(self, run: str, optimizer: int) -> Flow:
        tags = {
            tag: meta
            for tag, (_, meta) in self._list(run).get(run, {}).items()
            if meta["kind"] == "flow" and meta["optimizer"] == optimizer
        }
        if not tags and run in self.unreadable:
            raise ValueError(self.unreadable[run])
        if not tags:
            raise KeyError(f"no gradient flow of optimizer {optimizer} in run {run!r}")
        columns = [
            (tags[tag], Column(datum.step, datum.wall_time, datum.numpy))
            for tag, data in self._read([run], list(tags), limit=columns_that_fit(tags.values())).get(run, {}).items()
            for datum in data
        ]
        if any(column.matrix.shape[:1] != (HEAD_ROWS + len(meta["layers"]),) for meta, column in columns):
            raise ValueError("a matrix has other rows than the layers it was written with")
        return flow_of(list(tags.values()), columns)

    def events(self, run: str, optimizer: int) -> dict[str, Any]:
        """Counts, events and findings; of a run that was continued, those of all its parts together.

        Raises:
            ValueError: if they cannot be read; the message names the run.
        """
        try:
            return self._events(run, optimizer)
        except Exception as error:  # whatever a file holds that we did not write
            raise ValueError(f"run {run!r} cannot be read: {type(error).__name__}: {error}") from error

    def norms(self, run: str, optimizer: int) -> Series:
        """Returns the total norm of every step; an empty series for a run of an older version, which has none.

        Raises:
            ValueError: if they cannot be read; the message names the run.
        """
        try:
            tags = self._tags_of(run, "norms", optimizer)
            read = self._read([run], tags, limit=_MAX_EVENTS).get(run, {}) if tags else {}
            data = sorted((datum for series in read.values() for datum in series), key=lambda datum: datum.wall_time)
            return join(pieces_of([(datum.step, datum.numpy.ravel()) for datum in data]))
        except Exception as error:  # whatever a file holds that we did not write
            raise ValueError(f"run {run!r} cannot be read: {type(error).__name__}: {error}") from error

    def _tags_of(self, run: str, kind: str, optimizer: int) -> list[str]:
        tags = self._list(run).get(run, {}).items()
        return [tag for tag, (_, meta) in tags if meta["kind"] == kind and meta["optimizer"] == optimizer]

    def _events(self, run: str, optimizer: int) -> dict[str, Any]:
        tags = self._tags_of(run, "events", optimizer)
        read = self._read([run], tags, limit=_MAX_EVENTS).get(run, {}) if tags else {}
        return merge_events(_payloads(read))

    def _list(self, run: str | None) -> Listed:
        tensors = self._provider.list_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=PLUGIN_NAME,
            run_tag_filter=None if run is None else RunTagFilter(runs=[run]),
        )
        found = {}
        for name, tags in tensors.items():
            try:
                found[name] = {tag: (series, _read_meta(series.plugin_content)) for tag, series in tags.items()}
            except (ValueError, RecursionError) as error:
                self.unreadable[name] = f"what was written with its tensors is not ours: {error}"
        return found

    def _read(self, runs: Sequence[str], tags: Sequence[str], limit: int) -> dict[str, dict[str, Any]]:
        found = self._provider.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=PLUGIN_NAME,
            downsample=limit,
            run_tag_filter=RunTagFilter(runs=list(runs), tags=list(tags)),
        )
        return {run: dict(by_tag) for run, by_tag in found.items()}

    def _read_kind(self, listed: Listed, kind: str, limit: int) -> dict[str, dict[str, Any]]:
        tags = {tag for by_tag in listed.values() for tag, (_, meta) in by_tag.items() if meta["kind"] == kind}
        if not tags:
            return {}
        try:
            return self._read(list(listed), sorted(tags), limit)
        except Exception:  # one of them holds what is no tensor: it is found by reading each by itself
            return {run: found for run in listed if (found := self._read_one(run, sorted(tags), limit))}

    def _read_one(self, run: str, tags: Sequence[str], limit: int) -> dict[str, Any]:
        try:
            return self._read([run], tags, limit).get(run, {})
        except Exception as error:
            self.unreadable[run] = _not_ours(error)
            return {}


def _read_meta(content: bytes) -> dict[str, Any]:
    """Returns what was written with a series of tensors: what they are, of which optimizer and layers.

    Raises:
        ValueError: if we did not write it.
    """
    meta = json.loads(content)
    if not isinstance(meta, dict) or not isinstance(meta.get("optimizer"), int) or "kind" not in meta:
        raise ValueError("neither a kind nor an optimizer is given")
    if meta["kind"] == "flow" and not isinstance(meta.get("layers"), list):
        raise ValueError("no layers are given")
    if meta["kind"] == "flow" and not all(isinstance(meta.get(name), list) for name in ("layer_stats", "step_stats")):
        raise ValueError("its columns have no names")
    return meta


def _not_ours(error: Exception) -> str:
    """Returns why a run cannot be read, in words for its user."""
    return f"what it holds under our name is not ours, or was damaged: {type(error).__name__}: {error}"


def _last_matrices(by_tag: dict[str, Any], tags: dict[str, tuple[Any, dict[str, Any]]]) -> dict[int, Array]:
    """Returns the last matrix of each optimizer, of those that were written under tags of its own."""
    written = [(datum.wall_time, tag, datum.numpy) for tag, data in by_tag.items() for datum in data]
    metas = {tag: meta for tag, (_, meta) in tags.items()}
    return {
        metas[tag]["optimizer"]: _spread(matrix, metas[tag], metas[tag]["layers"])
        for _, tag, matrix in sorted(written, key=lambda entry: entry[0])
    }


def _extent(tags: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """Tells how far a run has come, when that was, and how many layers it has."""
    flows = [(series, meta) for series, meta in tags.values() if meta["kind"] == "flow"]
    return {
        "last_step": max(series.max_step for series, _ in flows),
        "wall_time": max(series.max_wall_time for series, _ in tags.values()),
        "layers": max(len(meta["layers"]) for _, meta in flows),
    }


def _payloads(by_tag: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what was written under tags of events, in the order in which it was."""
    data = [datum for series in by_tag.values() for datum in series]
    return [json.loads(datum.numpy.ravel()[0]) for datum in sorted(data, key=lambda datum: datum.wall_time)]


def flow_of(metas: Sequence[dict[str, Any]], columns: Iterable[tuple[dict[str, Any], Column]]) -> Flow:
    """Puts a picture together: rows in the order of the forward pass, columns in that of training.

    Args:
        metas: what was written with each set of layers, see :func:`~lightning_gradguard.tensorboard.flow.layout_of`;
            without ``shapes``, ``kinds``, ``depth`` and ``clip_ratio`` these are not known.
        columns: what was read, each with the one of ``metas`` that it belongs to.
    """
    layers = merge_orders(forward_orders(metas))
    shapes: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for meta in metas:
        shapes.update(zip(meta["layers"], meta.get("shapes") or (), strict=False))
        kinds.update(zip(meta["layers"], meta.get("kinds") or (), strict=False))
    ratios = [meta["clip_ratio"] for meta in metas if meta.get("clip_ratio")]
    kept = in_order(Column(c.step, c.wall_time, _spread(c.matrix, meta, layers)) for meta, c in columns)
    return Flow(
        layers=tuple(layers),
        shapes=tuple(shapes.get(layer, "") for layer in layers),
        kinds=tuple(kinds.get(layer, "") for layer in layers),
        steps=np.array([column.step for column in kept], dtype=np.int64),
        wall_times=np.array([column.wall_time for column in kept], dtype=np.float64),
        matrices=np.stack([column.matrix for column in kept]),
        clip_ratio=ratios[-1] if ratios else None,
        dry_run=any(meta.get("dry_run") for meta in metas),
    )


def forward_orders(metas: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Returns the layers of each, in the order of the forward pass; those that know the most places in it first.

    Example:
        >>> forward_orders([{"layers": ["head", "stem"]}, {"layers": ["head", "stem"], "depth": [1, 0]}])
        [['stem', 'head'], ['head', 'stem']]
    """
    orders = []
    for meta in metas:
        depth = meta.get("depth") or [None] * len(meta["layers"])
        known = sum(place is not None for place in depth)
        orders.append((-known, [meta["layers"][index] for index in forward_order(tuple(depth))]))
    return [order for _, order in sorted(orders, key=lambda entry: entry[0])]


def columns_that_fit(metas: Iterable[dict[str, Any]]) -> int:
    """Tells how many columns of each set of layers one answer of the data server can hold.

    Example:
        >>> columns_that_fit([{"layers": ["layer"] * 998}])
        12487
    """
    per_column = sum(4 * len(LAYER_STATS) * (HEAD_ROWS + len(meta["layers"])) for meta in metas)
    return max(1, _MAX_BYTES // per_column)


def in_order(columns: Iterable[Column]) -> list[Column]:
    """Columns with strictly increasing steps, in the order they were written.

    Where the steps go back, training was taken up again from an earlier checkpoint: the columns from there on are of
    the attempt that was given up, and go. Two records of one step are folded, the worst of both; one record that was
    written under two tags is one.
    """
    kept: list[Column] = []
    for column in sorted({(c.wall_time, c.step): c for c in columns}.values(), key=lambda c: c.wall_time):
        while kept and kept[-1].step > column.step:
            kept.pop()
        if kept and kept[-1].step == column.step:
            column = Column(column.step, column.wall_time, fold(kept.pop().matrix, column.matrix))
        kept.append(column)
    return kept


def merge_orders(orders: Iterable[Sequence[str]]) -> list[str]:
    """Returns one order out of several that share names: the longest, with each name it lacks put after its neighbour.

    Example:
        >>> merge_orders([["head"], ["stem", "body"], ["stem", "body", "head"]])
        ['stem', 'body', 'head']
    """
    merged: list[str] = []
    for order in sorted(orders, key=len, reverse=True):
        known = set(merged)
        for index, name in enumerate(order):
            if name not in known:
                merged.insert(merged.index(order[index - 1]) + 1 if index else 0, name)
                known.add(name)
    return merged


def merge_events(payloads: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Payloads of one run as one: each is cumulative since its process began, so a fall of the counts is a new part."""
    parts: list[dict[str, Any]] = []
    for payload in payloads:
        if parts and _continues(parts[-1], payload):
            parts.pop()
        parts.append(payload)
    counts: dict[str, int] = {}
    findings: dict[str, Any] = {}
    for part in parts:
        for kind, count in part["counts"].items():
            counts[kind] = counts.get(kind, 0) + count
        findings.update((finding["rule"], finding) for finding in part["findings"])
    events = sorted((event for part in parts for event in part["events"]), key=lambda event: event["step"])
    return {"counts": counts, "events": events, "findings": list(findings.values())}


def _continues(earlier: dict[str, Any], later: dict[str, Any]) -> bool:
    grown = all(later["counts"].get(kind, 0) >= count for kind, count in earlier["counts"].items())
    return grown and earlier["events"][:1] == later["events"][:1]


def _spread(matrix: Array, meta: dict[str, Any], onto: Sequence[str]) -> Array:
    """Returns the matrix with its rows where the merged order has them, and its columns where this version has them.

    Layers and statistics that it did not have are not measured; those that this version does not know are left out.
    """
    own_layers = meta["layers"]
    own_stats, own_step_stats = list(meta["layer_stats"]), list(meta["step_stats"])
    if (*own_layers, *own_stats, *own_step_stats) == (*onto, *LAYER_STATS, *STEP_STATS):
        return matrix
    num_head_rows = len(own_step_stats) // len(own_stats)
    head = dict.fromkeys(STEP_STATS, np.float32(NOT_MEASURED)) | {"loss": np.float32(NO_LOSS)}
    head |= dict(zip(own_step_stats, matrix[:num_head_rows].ravel(), strict=False))
    spread = np.full((HEAD_ROWS + len(onto), len(LAYER_STATS)), NOT_MEASURED, dtype=np.float32)
    spread[:HEAD_ROWS] = np.array([head[name] for name in STEP_STATS]).reshape(HEAD_ROWS, -1)
    position = {layer: HEAD_ROWS + index for index, layer in enumerate(onto)}
    rows = [position[layer] for layer in own_layers]
    for column, name in enumerate(LAYER_STATS):
        if name in own_stats:
            spread[rows, column] = matrix[num_head_rows:, own_stats.index(name)]
    return spread
