"""The record of a study, and its views: one table, one plot, one JSON file, all made from the runs alone."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

Series = list[tuple[int, float]]


@dataclass
class Run:
    """One variant trained with one seed (or one draw, where nothing is trained).

    Attributes:
        metrics: final results by name; NaN where the run did not get there.
        diverged: whether it failed, by the study's own measure.
        stopped_at: the training step at which the loss or the gradient was not finite.
        clip_rate: share of the steps that were clipped; ``None`` without a clipper.
        largest_norm: largest finite gradient norm of the run, before clipping.
        depth: gradient norm of each layer at the first step, input first.
        depth_after: the same at the end of training, where a study measures it.
        weights_finite: whether no weight was NaN or infinite in the end.
        over_time: (step, gradient norm before clipping).
    """

    variant: str
    seed: int
    metrics: dict[str, float]
    diverged: bool = False
    stopped_at: int | None = None
    clip_rate: float | None = None
    largest_norm: float | None = None
    depth: dict[str, float] = field(default_factory=dict)
    depth_after: dict[str, float] = field(default_factory=dict)
    over_time: Series = field(default_factory=list)
    seconds: float | None = None
    weights_finite: bool = True

    def line(self) -> str:
        """The run in one line, for a log file."""
        end = f"not finite at step {self.stopped_at}" if self.stopped_at else "diverged" if self.diverged else ""
        shown = ", ".join(f"{name} {number(value)}" for name, value in self.metrics.items() if math.isfinite(value))
        took = "" if self.seconds is None else f"{self.seconds:.0f} s"
        return "  ".join(part for part in (f"{self.variant}, seed {self.seed}:", shown, end, took) if part)


@dataclass
class Study:
    """A question, and the runs that answer it.

    Attributes:
        name: of the script, and of the folder with the TensorBoard runs.
        question: the table's title.
        metrics: key of a metric, and its heading in the table.
        source: what it was trained on.
        depth_of: what the profile over depth shows, its label in the plot.
        command: how to run it again.
        reference: values that the metrics are to be compared with.
    """

    name: str
    question: str
    metrics: dict[str, str]
    source: str
    command: str
    depth_of: str = "layer"
    over_of: str = "training step"
    reference: dict[str, float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def variants(self) -> list[str]:
        return list(dict.fromkeys(run.variant for run in self.runs))

    def of(self, variant: str) -> list[Run]:
        """The runs of one variant."""
        found = [run for run in self.runs if run.variant == variant]
        if not found:
            raise KeyError(f"{self.name} has no variant {variant!r}; it has {self.variants()}")
        return found

    def values(self, variant: str, metric: str) -> list[float]:
        """A metric over the seeds of a variant, NaN included."""
        return [run.metrics[metric] for run in self.of(variant)]

    def mean(self, variant: str, metric: str) -> float:
        """Mean over the seeds; NaN if one run did not get there."""
        return statistics.fmean(self.values(variant, metric))

    # ---- views

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells; a column that says nothing of any variant is left out."""
        columns: list[tuple[str, Callable[[list[Run]], str]]] = [("variant", lambda runs: runs[0].variant)]
        columns += [(label, _metric(key)) for key, label in self.metrics.items()]
        columns += [
            ("diverged", lambda runs: f"{sum(run.diverged for run in runs)}/{len(runs)}" if runs[0].seconds else ""),
            ("weights finite", self._weights),
            ("first layer", lambda runs: _median([_ends(run)[0] for run in runs])),
            ("last layer", lambda runs: _median([_ends(run)[1] for run in runs])),
            ("decades a layer", lambda runs: _median([slope(run.depth) for run in runs], "+.2f")),
            ("largest norm", lambda runs: _median([run.largest_norm for run in runs])),
            ("clip rate", lambda runs: _median([run.clip_rate for run in runs], ".1%")),
            ("seconds", lambda runs: _median([run.seconds for run in runs], ".1f")),
        ]
        groups = [self.of(variant) for variant in self.variants()]
        cells = [[make(group) for _, make in columns] for group in groups]
        kept = [index for index in range(len(columns)) if any(row[index] for row in cells)]
        return [columns[index][0] for index in kept], [[row[index] or "–" for index in kept] for row in cells]

    def _weights(self, runs: list[Run]) -> str:
        if all(run.weights_finite for run in self.runs):
            return ""
        return f"{sum(run.weights_finite for run in runs)}/{len(runs)}"

    def markdown(self) -> str:
        """The table for a page."""
        headings, cells = self.rows()
        rule = ["---"] + ["---:"] * (len(headings) - 1)
        return "\n".join("| " + " | ".join(row) + " |" for row in [headings, rule, *cells])

    def print(self) -> None:
        """The table for a terminal."""
        headings, cells = self.rows()
        seeds = len({run.seed for run in self.runs})
        about = (
            f"{self.source}\n{seeds} seed{'s' * (seeds > 1)}: metrics are mean ± standard deviation, the rest medians"
        )
        table = Table(
            box=box.SIMPLE_HEAD,
            title=self.question,
            caption=about if self.source else None,
            title_justify="left",
            caption_justify="left",
        )
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index else "left", no_wrap=not index, overflow="fold")
        for row in cells:
            table.add_row(*row)
        console().print(table)

    def plot(self, path: Path) -> Path:
        """Gradient norm over depth at the first step, and over time; a line for each variant, both axes in decades."""
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        variants = self.variants()
        many = len(variants) > 6  # then the names go below the axes
        figure = Figure(figsize=(11, 4.2 + 0.05 * len(variants) * many), layout="constrained")
        over_depth, over_time = figure.subplots(1, 2)
        colors = colormaps["tab20" if len(variants) > 10 else "tab10"].colors
        for index, variant in enumerate(variants):
            runs, style = self.of(variant), {"color": colors[index % len(colors)]}
            line = {"linestyle": "-" if index < len(colors) else "--"}  # no two variants look alike
            profile, after = _profile([run.depth for run in runs]), _profile([run.depth_after for run in runs])
            if profile:
                over_depth.plot(range(1, len(profile) + 1), profile, marker=".", label=variant, **style, **line)
            if after:
                over_depth.plot(range(1, len(after) + 1), after, linestyle=":", label=f"{variant}, trained", **style)
            points = [(step, norm) for step, norm in runs[0].over_time if math.isfinite(norm) and norm > 0]
            if points:
                over_time.plot(*zip(*points, strict=True), label=variant, linewidth=1, **style, **line)
        over_depth.set(xlabel=f"{self.depth_of}, input first", title="over depth, at the first step")
        over_time.set(xlabel=self.over_of, title="over time, before clipping")
        for axes in (over_depth, over_time):
            if not axes.lines:
                axes.remove()
                continue
            axes.set(yscale="log", ylabel="gradient norm (l2)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if not many:
                axes.legend(fontsize=8)
        if many and figure.axes:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(),
                loc="outside lower center",
                ncols=4,
                fontsize=7,
                handlelength=3,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path

    def record(self, folder: Path) -> Path:
        """Writes the runs with command, date and machine, and the plot beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.0f})"
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{machine}, 1 thread",
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        }
        values = asdict(self)
        for run in values["runs"]:
            if run["seed"] != self.runs[0].seed:
                run["over_time"] = []  # one seed is plotted
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(about | values, default=str) + "\n", encoding="utf-8")
        temporary.replace(path)
        self.plot(path.with_suffix(".png"))
        return path

    def finish(self, args: Any) -> Study:
        """Prints the table, draws the plot, and says what to type next."""
        self.print()
        if getattr(args, "fast_dev_run", False):
            return self
        folder = Path(args.logdir) / self.name
        print(f"plot:       {self.plot(folder / 'gradients.png')}")
        if args.record:
            print(f"recorded:   {self.record(Path(args.record))}")
        if any(folder.rglob("events.out.tfevents*")):
            print(f"look at it: tensorboard --logdir {folder}")
        return self


def console() -> Console:
    """Where tables go; a pipe has no width, and a table is not to be folded there."""
    made = Console()
    return made if made.is_terminal else Console(width=180)


def load(path: Path) -> tuple[Study, dict[str, str]]:
    """A recorded study, and when and where it ran."""
    values = json.loads(path.read_text(encoding="utf-8"))
    about = {key: values.pop(key) for key in ("date", "machine", "versions")}
    values["runs"] = [Run(**run) for run in values["runs"]]
    return Study(**values), about


def slope(depth: dict[str, float]) -> float | None:
    """Decades that the norm gains per layer from input to output: the slope of a straight line through log10."""
    points = [
        (index, math.log10(norm)) for index, norm in enumerate(depth.values()) if norm > 0 and math.isfinite(norm)
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None


def thin(series: Series, most: int = 240) -> Series:
    """At most ``most`` points; each stands for a stretch of the series and is its largest, so no spike is lost."""
    width = max(1, math.ceil(len(series) / most))
    stretches = [series[start : start + width] for start in range(0, len(series), width)]
    return [(stretch[0][0], float(f"{max(norm for _, norm in stretch):.4g}")) for stretch in stretches]


def number(value: float, digits: int = 4) -> str:
    """Four digits, whatever the size."""
    return f"{value:.{digits}g}"


def _metric(key: str) -> Callable[[list[Run]], str]:
    def make(runs: list[Run]) -> str:
        values = [run.metrics.get(key, math.nan) for run in runs]
        there = [value for value in values if math.isfinite(value)]
        if not there:
            untrained = runs[0].seconds is None
            return "" if untrained else "inf" if math.inf in values else "never" if key == "epochs" else "NaN"
        spread = f" ± {number(statistics.stdev(there), 2)}" if len(there) > 1 else ""
        return f"{number(statistics.fmean(there))}{spread}" + (
            f" ({len(there)} of {len(runs)})" if len(there) < len(runs) else ""
        )

    return make


def _median(values: Sequence[float | None], form: str | None = None) -> str:
    there = [value for value in values if value is not None and not math.isnan(value)]
    if not there:
        return ""
    middle = statistics.median(there)
    return format(middle, form) if form else f"{middle:.1e}"


def _ends(run: Run) -> tuple[float | None, float | None]:
    norms = list(run.depth.values())
    return (norms[0], norms[-1]) if norms else (None, None)


def _profile(depths: list[dict[str, float]]) -> list[float]:
    """Median over the seeds, layer by layer; empty where there is nothing to draw on a log axis."""
    middle = [statistics.median(column) for column in zip(*(depth.values() for depth in depths), strict=False)]
    return [value if value > 0 else math.nan for value in middle] if any(value > 0 for value in middle) else []
