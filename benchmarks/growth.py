"""How cost grows: with tensors, with parameters, with steps, with what is logged; and what starting takes.

    python -m benchmarks.growth [--quick] [--record]

CPU time of a quiet step with everything on (ZClip that has nothing to clip, guard) beside ``clip_grad_norm_``,
alternating, one thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard.writer import FileWriter
from tqdm import tqdm

from benchmarks import machine
from lightning_gradguard import GradientPipeline, JsonlSink, MemorySink, Sink, StepRecord, TensorBoardSink, ZClip
from lightning_gradguard.tensorboard.flow import flow_matrix, flow_metadata
from lightning_gradguard.tensorboard.protos import matrix_value, plugin_metadata
from lightning_gradguard.tensorboard.scalars import scalar_values

NEVER = 10**9
Point = dict[str, float]


def pipeline_of(net: nn.Module, sinks: Sequence[Sink] = (), every: int = NEVER) -> GradientPipeline:
    """Everything on, and nothing that needs clipping."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return GradientPipeline(
        net, optimizer, clip=ZClip(z=1e6), on_nonfinite="skip", sinks=sinks, log_every_n_steps=every
    )


def with_gradients(shapes: Sequence[tuple[int, ...]]) -> nn.Module:
    """Parameters of these shapes, one in a layer, with gradients."""
    net = nn.Module()
    for index, shape in enumerate(shapes):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.full(shape, 0.1))
        layer.weight.grad = torch.full(shape, 1e-3)
        net.add_module(f"layer{index}", layer)
    return net


def compare(net: nn.Module, repeats: int) -> Point:
    """Milliseconds of CPU time: ours, clipping as Lightning does it, and one flat read of as many numbers."""
    pipeline, params = pipeline_of(net), list(net.parameters())
    flat = torch.full((sum(p.numel() for p in params),), 1e-3)
    functions: dict[str, Callable[[], object]] = {
        "everything": pipeline.before_step,
        "clip_grad_norm_": lambda: clip_grad_norm_(params, 1e9),
        "flat read": flat.sum,
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: 1e3 * machine.median_and_spread(values[1:])[0] for name, values in seconds.items()}


def by_tensors(counts: Sequence[int]) -> dict[int, Point]:
    """Many small tensors: 16 x 16 and 16, as of linear layers."""
    return {n: compare(with_gradients([(16, 16), (16,)] * (n // 2)), 20) for n in tqdm(counts, desc="tensors")}


def by_parameters(counts: Sequence[int]) -> dict[int, Point]:
    """Ten tensors, ever larger."""
    return {
        n: compare(with_gradients([(n // 10,)] * 10), 20 if n < 10**7 else 5) for n in tqdm(counts, desc="parameters")
    }


def by_steps(steps: int, samples: int = 20) -> dict[int, Point]:
    """Memory of the process in MB while quiet steps go by."""
    net = with_gradients([(16, 16), (16,)] * 5)
    pipeline = pipeline_of(net)
    found: dict[int, Point] = {}
    for done in tqdm(range(0, steps + 1, steps // samples), desc="steps"):
        found[done] = {"resident": _resident_mb()}
        for _ in range(steps // samples if done < steps else 0):
            pipeline.before_step()
    return found


def by_logging(layers: Sequence[int], records: int = 50) -> dict[int, Point]:
    """Bytes on disk for a logged step and layer."""
    return {
        count: {
            "TensorBoard": _bytes(TensorBoardSink, count, records) / records / count,
            "JSONL": _bytes(lambda folder: JsonlSink(f"{folder}/gradients.jsonl"), count, records) / records / count,
        }
        for count in tqdm(layers, desc="layers logged")
    }


def _bytes(make: Callable[[str], Sink], count: int, records: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        sink = make(folder)
        pipeline = pipeline_of(with_gradients([(4, 4)] * count), [sink], every=1)
        for _ in range(records):
            pipeline.before_step()
        sink.close()
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def by_reading(sizes: Sequence[int]) -> dict[int, Point]:
    """Seconds that TensorBoard's reader takes for n layers x n logged steps: as scalars, and as flow tensor."""
    found: dict[int, Point] = {}
    for size in tqdm(sizes, desc="layers x steps read"):
        memory = MemorySink(1)
        pipeline_of(with_gradients([(4, 4)] * size), [memory], every=1).before_step()
        record = memory.records[0]
        found[size] = {"scalars": _read_s(_scalars, record, size), "flow tensor": _read_s(_flow, record, size)}
    return found


def _scalars(record: StepRecord, first: bool) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in scalar_values(record).items()])


def _flow(record: StepRecord, first: bool) -> Summary:
    metadata = plugin_metadata(flow_metadata(record)) if first else None
    return Summary(value=[matrix_value("gradguard/flow/0", flow_matrix(record), metadata)])


def _read_s(summary: Callable[[StepRecord, bool], Summary], record: StepRecord, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        writer = FileWriter(folder)
        for step in range(steps):
            writer.add_summary(summary(record, step == 0), step)
        writer.close()
        start = time.process_time()
        EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0}).Reload()
        return time.process_time() - start


def starting() -> dict[str, float]:
    """Milliseconds: importing the package in a fresh interpreter; what the callbacks do before the first step."""
    import lightning.pytorch as pl

    from benchmarks.overhead import fit
    from benchmarks.workloads import Workload, mlp
    from lightning_gradguard import GradGuard

    program = "import time; t = time.process_time(); import lightning_gradguard; print(time.process_time() - t)"
    imports = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(5)]
    spent: list[float] = []

    class Timed(pl.Callback):
        """Hands on the hooks before the first step, and takes their time."""

        def __init__(self, inner: pl.Callback) -> None:
            self.inner = inner

        def _timed(self, hook: str, trainer: Any, *args: Any, **kwargs: Any) -> None:
            ours, trainer.callbacks = trainer.callbacks, [self.inner]
            start = time.process_time()
            getattr(self.inner, hook)(trainer, *args, **kwargs)
            spent.append(time.process_time() - start)
            trainer.callbacks = ours

        def setup(self, *args: Any, **kwargs: Any) -> None:
            self._timed("setup", *args, **kwargs)

        def on_fit_start(self, *args: Any) -> None:
            self._timed("on_fit_start", *args)

        def on_train_start(self, *args: Any) -> None:
            self._timed("on_train_start", *args)

    totals = []
    for _ in range(5):
        spent.clear()
        batch = (torch.randn(2, 16), torch.randint(10, (2,)))
        with tempfile.TemporaryDirectory() as folder:
            fit(Workload(mlp(998), batch), [Timed(GradGuard(clip=ZClip()))], 1, folder)
        totals.append(sum(spent))
    return {
        "import of the package": 1e3 * machine.median_and_spread(imports)[0],
        "callbacks before the first step, 1,000 layers": 1e3 * machine.median_and_spread(totals)[0],
    }


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


PANELS: dict[str, tuple[str, str, str]] = {
    "tensors": ("Cost against the number of tensors", "tensors of 16 x 16 and 16", "ms of CPU a step"),
    "parameters": ("Cost against the number of parameters", "parameters, in 10 tensors", "ms of CPU a step"),
    "steps": ("Memory of the process", "quiet steps", "MB"),
    "logging": ("Disk", "layers", "bytes a layer and logged step"),
    "reading": ("TensorBoard's reader", "n layers x n logged steps", "s of CPU to load"),
}


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel for each quantity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.4), layout="constrained")
    for axis, (key, (title, x_label, y_label)) in zip(axes, PANELS.items(), strict=True):
        points = results[key]
        x = [int(value) for value in points]
        for name in next(iter(points.values())):
            axis.plot(x, [point[name] for point in points.values()], marker="o", markersize=3, label=name)
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        if key != "steps":
            axis.set_xscale("log")
        if key in ("tensors", "parameters", "reading"):
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.2 * max(value for point in points.values() for value in point.values()))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def page(results: dict[str, Any]) -> str:
    """All figures as tables."""
    parts = ["# How cost grows", machine.in_words(results["machine"])]
    for key, (title, x_label, y_label) in PANELS.items():
        names = list(next(iter(results[key].values())))
        rows = [[f"{int(x):,}", *[f"{point[name]:.3g}" for name in names]] for x, point in results[key].items()]
        table = machine.markdown_table([x_label, *[f"{name}, {y_label}" for name in names]], rows)
        parts.append(f"## {title}\n\n{table}")
    rows = [[name, f"{value:.1f}"] for name, value in results["starting"].items()]
    parts.append("## Starting\n\n" + machine.markdown_table(["", "ms"], rows))
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: the largest sizes are left out")
    machine.add_record_option(parser, "growth")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    quick = options.quick
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "starting": starting(),
        "steps": by_steps(10_000 if quick else 100_000),
        "tensors": by_tensors([10, 30, 100, 300, 1000] + ([] if quick else [3000, 10_000])),
        "parameters": by_parameters([10**4, 10**5, 10**6, 10**7] + ([] if quick else [10**8, 3 * 10**8])),
        "logging": by_logging([10, 100] + ([] if quick else [1000])),
        "reading": by_reading([30, 100] + ([] if quick else [300, 1000])),
    }
    text = page(results)
    machine.save(options.name, results, text, record=options.record)
    draw(results, machine.figure_path("growth.png", record=options.record))
    print(text)


if __name__ == "__main__":
    main()
