"""What the records cost to write, what they take on disk, and how soon the *Gradient flow* tab shows them.

    python -m benchmarks.tensorboard_cost [--rounds 60] [--records 2000] [--layers 26 200 1000]

Writing: the ways take turns, record by record; CPU time of the process, writer threads and flush included. First
picture: a run of that many records is written, TensorBoard is started on it, and a browser opens the tab five times;
the clock is the browser's own, from the beginning of the tab's page to the end of the first drawing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from benchmarks import machine
from lightning_gradguard import StepRecord
from lightning_gradguard.tensorboard.scalars import scalar_values
from lightning_gradguard.tensorboard.sink import TensorBoardSink
from tests.browser.conftest import Board, open_browser
from tests.browser.tab import Tab
from tests.tensorboard.synthetic import large_run, write_run

Write = Callable[[StepRecord], None]
LOOP, LOGGER, EVENT, SINK = (
    "`add_scalar` in a loop",
    "`logger.log_metrics`",
    "scalars in one event",
    "**TensorBoardSink**",
)


def ways_to_write(folder: Path) -> dict[str, tuple[Write, Callable[[], None]]]:
    """Each way with what waits for its writing."""
    loop, event, own = (SummaryWriter(str(folder / name)) for name in ("loop", "event", "sink"))
    logger = TensorBoardLogger(folder, name="", version="logger")
    sink = TensorBoardSink(own)

    def write_loop(record: StepRecord) -> None:
        for tag, value in scalar_values(record).items():
            loop.add_scalar(tag, value, record.step)

    def write_event(record: StepRecord) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalar_values(record).items()]
        event._get_file_writer().add_summary(Summary(value=values), record.step)

    return {
        LOOP: (write_loop, loop.flush),
        LOGGER: (lambda record: logger.log_metrics(scalar_values(record), record.step), logger.experiment.flush),
        EVENT: (write_event, event.flush),
        SINK: (sink.write, own.flush),
    }


def writing(num_layers: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU and bytes on disk for one record, by way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = ways_to_write(folder)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for record in large_run(num_layers, rounds):
            for way, (write, flush) in ways.items():
                flush()
                begun = time.process_time()
                write(record)
                flush()
                times[way].append(1e3 * (time.process_time() - begun))
        folders = dict(zip(ways, ("loop", "logger", "event", "sink"), strict=True))
        sizes = {way: sum(f.stat().st_size for f in (folder / sub).iterdir()) for way, sub in folders.items()}
    return {way: {"ms": statistics.median(times[way]), "bytes": sizes[way] / rounds} for way in ways}


def memory_mb(process: int) -> float:
    """Resident memory of a process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in (str(process), *children)]
    return sum(int(line.split()[1]) for status in lines for line in status if line.startswith("VmRSS")) / 1024


def first_picture(logdir: Path, records: int, *flags: str) -> dict[str, float]:
    """Seconds to the first picture, median and largest of five, and memory of TensorBoard after it."""
    board = Board(logdir, *flags)
    with tempfile.TemporaryDirectory() as folder:
        browser = open_browser(Path(folder) / "profile", Path(folder))
        try:
            begun = time.monotonic()
            board.wait_for(f'"last_step": {(records - 1) * 50},', timeout=300)
            reading = time.monotonic() - begun
            seconds = []
            for _ in range(5):
                tab = Tab(browser, board.address).load("&p.gradguard.run=run")
                script = "return performance.getEntriesByName('gradguard-picture')[0].startTime"
                seconds.append(browser.execute_script(script) / 1e3)
            columns = float(tab.data("columns") or 0)
            memory = memory_mb(board.process.pid)
        finally:
            browser.quit()
            board.stop()
    times = {"median_s": statistics.median(seconds), "largest_s": max(seconds), "reading_s": reading}
    return {**times, "columns": columns, "mb": memory}


def pictures(layers: Sequence[int], records: int) -> dict[str, dict[str, float]]:
    """The tab on a run of each size; on that of 200 layers with the slow loader too, which takes minutes for more."""
    found = {}
    for num_layers in layers:
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder) / "run", large_run(num_layers, records))
            found[f"{num_layers:,} layers"] = first_picture(Path(folder), records)
            if num_layers == 200:
                slow = first_picture(Path(folder), records, "--load_fast=false")
                found[f"{num_layers:,} layers, `--load_fast=false`"] = slow
    return found


def page(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    write_rows = [
        [
            way,
            *(
                f"{by_way[way]['ms']:.2f} ms, {by_way[way]['bytes'] / 1e3:.1f} kB"
                for by_way in results["writing"].values()
            ),
        ]
        for way in (LOOP, LOGGER, EVENT, SINK)
    ]
    picture_rows = [
        [
            name,
            f"{r['median_s']:.2f} s",
            f"{r['largest_s']:.2f} s",
            f"{r['columns']:.0f}",
            f"{r['mb']:.0f} MB",
            f"{r['reading_s']:.0f} s",
        ]
        for name, r in results["pictures"].items()
    ]
    header = ["", *(f"{layers} layers" for layers in results["writing"])]
    return "\n\n".join(
        [
            "# TensorBoard: writing, disk, first picture",
            machine.in_words(results["machine"]),
            f"## One record: CPU time and bytes on disk\n\nMedian of {results['rounds']} records, flushed each.",
            machine.markdown_table(header, write_rows),
            f"## The tab on {results['records']:,} records, {(results['records'] - 1) * 50:,} steps\n\n"
            "From the beginning of the tab's page to its first picture, five times; memory of TensorBoard and its data "
            "server after it; and how long TensorBoard took, once, from its start until it had read the whole run, "
            "scalars of all layers included.",
            machine.markdown_table(
                ["", "median", "largest", "columns kept", "memory", "reading the files"], picture_rows
            ),
        ]
    )


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="records written by each way")
    parser.add_argument("--records", type=int, default=2000, help="records of the run that the tab shows")
    parser.add_argument("--layers", type=int, nargs="+", default=[26, 200, 1000])
    machine.add_record_option(parser, "tensorboard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine.describe(), "rounds": options.rounds, "records": options.records}
    results["writing"] = {layers: writing(layers, options.rounds) for layers in (20, 200, 1000)}
    results["pictures"] = pictures(options.layers, options.records)
    text = page(results)
    machine.save(options.name, results, text, record=options.record)
    print(text)


if __name__ == "__main__":
    main()
