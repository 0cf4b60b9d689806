"""A run as a figure; the one place that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_gradguard.hindsight.series import outline
from lightning_gradguard.report.picture import Picture
from lightning_gradguard.report.summary import summarize
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, STEP_STATS

_LABELS = 24  # layer names that find room
_PLACES = 2000  # of the curve of every step
_MARKS = {"nonfinite": ("x", "tab:red"), "rollback": ("v", "tab:red"), "overflow": ("1", "tab:gray")}
_MARKS |= {"spike": ("^", "tab:orange"), "finding": ("d", "tab:purple")}

Array = NDArray[np.float64]


@final
class RunFigure(Figure):
    """A figure that a notebook shows, once, without ``pyplot`` and its list of open figures."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def draw(picture: Picture) -> RunFigure:
    """Norms of layers × steps with their profile beside it, and the total norm with threshold and events below."""
    names = [layer for layer, _ in summarize(picture).profile]  # in the order of the forward pass, input first
    figure = RunFigure(figsize=(10.0, min(12.0, 5.0 + 0.16 * len(names))), layout="constrained")
    if not names:
        _draw_total(figure.subplots(), picture)
        return figure
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 1), height_ratios=(max(1.6, 0.12 * len(names)), 1))
    flow = figure.add_subplot(grid[0, 0])
    _draw_flow(flow, picture, names)
    _draw_profile(figure.add_subplot(grid[0, 1], sharey=flow), picture)
    _draw_total(figure.add_subplot(grid[1, 0], sharex=flow), picture)
    return figure


def _draw_flow(axes: Axes, picture: Picture, names: Sequence[str]) -> None:
    rows = [HEAD_ROWS + picture.flow.layers.index(name) for name in names]
    norms = picture.flow.matrices[:, rows, 0].T.astype(np.float64)
    shown = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    known = shown[~np.isnan(shown)]
    scale = LogNorm(known.min(), known.max()) if len(known) and known.min() < known.max() else None
    image = axes.pcolormesh(_edges(picture.flow.steps), np.arange(len(names) + 1), shown, norm=scale, cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label="gradient norm", location="left", pad=0.02)
    for column, row in zip(*np.nonzero(~np.isfinite(norms.T)), strict=True):
        axes.plot(picture.flow.steps[column], row + 0.5, "x", color="tab:red", markersize=4)
    each = max(1, -(-len(names) // _LABELS))
    axes.set_yticks(np.arange(0, len(names), each) + 0.5, [names[i] for i in range(0, len(names), each)], fontsize=7)
    axes.invert_yaxis()  # input first, at the top
    axes.set_title(picture.run, loc="left")


def _draw_profile(axes: Axes, picture: Picture) -> None:
    profile = summarize(picture).profile
    known = [(index + 0.5, norm) for index, (_, norm) in enumerate(profile) if norm]
    axes.plot([norm for _, norm in known], [place for place, _ in known], "o-", markersize=3)
    axes.set_xscale("log")
    axes.tick_params(labelleft=False)
    axes.set_xlabel("median norm")
    axes.grid(alpha=0.3)


def _draw_total(axes: Axes, picture: Picture) -> None:
    head = picture.flow.matrices[:, :HEAD_ROWS].reshape(len(picture.flow.steps), -1).astype(np.float64)
    values = dict(zip(STEP_STATS, head.T, strict=True))
    for name, label, style in (("total_norm", "total norm", "-"), ("threshold", "threshold", "--")):
        drawn = np.where(np.isfinite(values[name]) & (values[name] > 0), values[name], np.nan)
        if not np.isnan(drawn).all():
            axes.plot(picture.flow.steps, drawn, style, label=label, marker="." if len(drawn) == 1 else "")
    if picture.series is not None and len(picture.series):
        shown = outline(picture.series, _PLACES)
        places, norms = picture.series.steps[shown], picture.series.norms[shown]
        axes.plot(places[norms > 0], norms[norms > 0], color="tab:gray", linewidth=0.6, zorder=1, label="every step")
    for kind, (marker, color) in _MARKS.items():
        steps = [event["step"] for event in picture.events["events"] if event["kind"] == kind]
        if steps:
            heights = np.full(len(steps), 0.93)
            axes.plot(steps, heights, marker, color=color, label=kind, transform=axes.get_xaxis_transform())
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")


def _edges(steps: NDArray[np.int64]) -> Array:
    """Between two steps, and as far beyond the first and the last."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.array([steps[0] * 1.5 - steps[1] * 0.5, *middle, steps[-1] * 1.5 - steps[-2] * 0.5])
