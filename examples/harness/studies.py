"""What every study shares: the options, and what is known of a training run.

The scripts hold models and settings; here is what would otherwise be copied between them. The table, the plot and the
recorded results are made in ``report.py``, from the runs alone.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from harness.data import UsageError
from harness.report import Run, Study, thin
from lightning_gradguard import MemorySink, NonFiniteGradientError, Rule

torch.set_num_threads(1)  # at these sizes a second thread only costs
torch.set_flush_denormal(True)  # a saturated LSTM is full of subnormal numbers: ten times slower on a CPU
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
# advice for long runs on large data, which these are not; deprecations between Lightning and torch; and the one skip
# that the guard announces, which here is what the study is about
QUIET = (
    ".*does not have many workers.*",
    ".*isolated from the main process.*",
    ".*GPU available but not used.*",
    ".*LeafSpec.*is deprecated.*",
    "step [0-9]+ was skipped.*",
)

LARGEST_SEED = 2**32 - 1  # NumPy's

Options = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(message))


def _complain(message: str) -> int:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return 2


def parser(doc: str, *, max_epochs: int | None, quick: str, data_dir: bool = False) -> argparse.ArgumentParser:
    """The options that every study understands; a script adds its own.

    Args:
        doc: the script's docstring, shown by ``--help``.
        max_epochs: the default; ``None`` for a study that does not train.
        quick: what ``--quick`` leaves out, for ``--help``.
        data_dir: whether the study can take MNIST or CIFAR-10 instead of the bundled digits.
    """
    made = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("--seed", type=int, default=0, help="first seed (default: 0)")
    made.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other (default: 1)")
    made.add_argument("--compare", action="store_true", help="every variant of the study, not only without and with")
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--logdir", default="runs", help="TensorBoard runs and the plot go here (default: runs)")
    made.add_argument("--record", metavar="FOLDER", help="also write the results there, as JSON, for the gallery")
    if max_epochs is not None:
        made.add_argument("--max_epochs", type=int, help=f"default: {max_epochs}")
        made.add_argument("--fast_dev_run", action="store_true", help="one batch of everything, nothing logged")
        made.add_argument(
            "--diagnose", action="store_true", help="run the diagnosis; it writes to TensorBoard's Text tab"
        )
        made.add_argument("--accelerator", default="cpu", help="as in Lightning's Trainer (default: cpu)")
    if data_dir:
        made.add_argument("--data-dir", metavar="FOLDER", help="MNIST or CIFAR-10 files instead of the digits")
    made.set_defaults(default_max_epochs=max_epochs)
    return made


def parse(
    made: argparse.ArgumentParser, argv: Sequence[str] | None, *, quick_epochs: int | None = None
) -> argparse.Namespace:
    """Reads and checks the options; ``args.max_epochs`` is filled in."""
    args = made.parse_args(argv)
    args.command = _command(made.prog, sys.argv[1:] if argv is None else argv)
    if args.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {args.seeds}")
    if not 0 <= args.seed <= args.seed + args.seeds - 1 <= LARGEST_SEED:
        raise UsageError(f"seeds go from 0 to {LARGEST_SEED}, got --seed {args.seed} --seeds {args.seeds}")
    rate = getattr(args, "lr", None)
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise UsageError(f"--lr must be positive, got {rate:g}")
    for option, folder in (("--logdir", args.logdir), ("--record", args.record)):
        if folder is not None:
            _check_folder(option, Path(folder))
    if args.default_max_epochs is None:
        return args
    if args.max_epochs is None:
        args.max_epochs = quick_epochs if args.quick and quick_epochs else args.default_max_epochs
    elif args.max_epochs < 1:
        raise UsageError(f"--max_epochs must be at least 1, got {args.max_epochs}")
    if args.fast_dev_run and args.record:
        raise UsageError("--fast_dev_run trains on one batch: there is nothing to --record")
    known = AcceleratorRegistry.available_accelerators()
    if args.accelerator not in {"auto", "gpu", *known}:
        raise UsageError(f"unknown --accelerator {args.accelerator!r}: choose auto, gpu, {', '.join(sorted(known))}")
    if args.accelerator != "cpu":
        _check_accelerator(args.accelerator)
    return args


def _check_folder(option: str, folder: Path) -> None:
    """Says before the training, not after it, that nothing can be written there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{option} {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{option} {folder}: no permission to write in {there}")


def _check_accelerator(accelerator: str) -> None:
    try:
        L.Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    except (RuntimeError, ImportError, L.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise UsageError(f"--accelerator {accelerator}: {str(error).splitlines()[0]}") from error


def _command(script: str, argv: Sequence[str]) -> str:
    """How to run it again; where it wrote its results is nobody's business."""
    words, rest = [], iter(argv)
    for word in rest:
        if word in ("--record", "--logdir"):
            next(rest)
        else:
            words.append(word)
    return " ".join(["python", f"examples/{script}", *words])


def run(main: Callable[[], object]) -> None:
    """Runs a script: what the user got wrong is one line and exit status 2, not a traceback."""
    try:
        main()
    except UsageError as error:
        sys.exit(_complain(str(error)))


class Bench:
    """The runs of one study, one after the other, each watched, under one progress bar.

    Args:
        study: where the runs are collected.
        args: the options from :func:`parse`.
        num_runs: how many there will be, for the bar.
    """

    def __init__(self, study: Study, args: argparse.Namespace, num_runs: int) -> None:
        self.study, self.args = study, args
        self.folder = Path(args.logdir) / study.name
        self._num_runs = num_runs
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f}/{task.total} runs"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._task = self._progress.add_task(study.name, total=num_runs)

    def __enter__(self) -> Bench:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def seeds(self) -> range:
        return range(self.args.seed, self.args.seed + self.args.seeds)

    def begin(
        self, variant: str, seed: int, *, reach: tuple[str, float] | None = None, stop_at_nan: bool = True
    ) -> Training:
        """What the ``Trainer`` of one run needs besides the callbacks that the study is about.

        Args:
            variant: name of the variant: a row of the table, a run in TensorBoard.
            seed: for the name; the script seeds before it builds its module.
            reach: a metric and the level at which it is good; the metric ``"epochs"`` is when it first got there.
            stop_at_nan: end the run at a loss that is not finite; off where a guard is to survive it.
        """
        self._progress.update(self._task, description=f"{self.study.name}: {variant}, seed {seed}")
        logger = None if self.args.fast_dev_run else self._logger(variant, seed)
        return Training(
            self, variant, seed, logger, _Reached(*(reach or ("", math.inf))), _Bar(self._progress, self._task),
            _StopWhenNotFinite() if stop_at_nan else None,
        )  # fmt: skip

    def add(self, run: Run) -> None:
        """Adds a run that was not trained by a ``Trainer``."""
        self.study.runs.append(run)
        self._progress.update(
            self._task, completed=len(self.study.runs), total=max(self._num_runs, len(self.study.runs))
        )
        if not self._progress.console.is_terminal:  # a log file has no bar: a line for each run
            print(f"{self.study.name}: {run.line()}", flush=True)

    def _logger(self, variant: str, seed: int) -> TensorBoardLogger:
        version = f"{variant}/seed-{seed}".replace(" ", "-")
        shutil.rmtree(self.folder / version, ignore_errors=True)  # the same run from before: curves would overlap
        return TensorBoardLogger(self.folder.parent, name=self.folder.name, version=version, default_hp_metric=False)


class Training:
    """One run of a study; the script makes its ``Trainer``, with the callbacks in sight, and hands it to :meth:`fit`.

    Attributes:
        memory: a sink for the records from which the table is made.
        rules: of the diagnosis, for ``GradientNormMonitor``: the shipped ones with ``--diagnose``, none without.
        callbacks: what the study itself wants to know; they come last.
        quiet: the other arguments of the ``Trainer``, from the options, with all that prints turned off.
    """

    def __init__(
        self,
        bench: Bench,
        variant: str,
        seed: int,
        logger: TensorBoardLogger | None,
        reached: _Reached,
        bar: _Bar,
        stop: _StopWhenNotFinite | None,
    ) -> None:
        args = bench.args
        self._bench, self._variant, self._seed = bench, variant, seed
        self._logger, self._reached, self._stop = logger, reached, stop
        self.memory = MemorySink(max_records=100_000)
        self.rules: list[Rule] | None = None if args.diagnose else []
        self.callbacks: list[L.Callback] = [reached, bar, *([stop] if stop else [])]
        self.quiet: dict[str, Any] = {
            "max_epochs": args.max_epochs,
            "accelerator": args.accelerator,
            "devices": 1,
            "fast_dev_run": args.fast_dev_run,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": logger,
        }

    def fit(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        train: DataLoader,
        val: DataLoader,
        *,
        depth: Callable[[str], bool] = lambda layer: True,
        optimizer: int = 0,
        diverged: Callable[[Mapping[str, float]], bool] = lambda metrics: False,
        hparams: Mapping[str, Any] | None = None,
        finish: Callable[[Run], None] = lambda run: None,
    ) -> None:
        """Trains, and adds the :class:`Run` to the study.

        Args:
            trainer: made with ``callbacks`` and ``quiet``.
            module: what is trained. Its ``self.log`` values named in ``study.metrics`` are the results.
            train: training batches.
            val: held-out batches, looked at after every epoch; nothing is chosen by them.
            depth: which layers the profile over depth takes.
            optimizer: whose layers these are.
            diverged: whether the final metrics mean failure; a first one that is missing or not finite always does.
            hparams: for TensorBoard's HParams tab, beside variant and seed.
            finish: adds to the run what the study measures by itself.
        """
        start = time.perf_counter()
        stopped = self._train(trainer, module, train, val)
        seconds = time.perf_counter() - start

        found = {key: float(value) for key, value in trainer.callback_metrics.items()} | {"epochs": self._reached.epoch}
        wanted = self._bench.study.metrics
        metrics = {key: math.nan if stopped is not None else found.get(key, math.nan) for key in wanted}
        run = Run(self._variant, self._seed, metrics, stopped_at=stopped, seconds=seconds)
        first = next((value for key, value in metrics.items() if key in trainer.callback_metrics), math.nan)
        run.diverged = stopped is not None or not math.isfinite(first) or diverged(metrics)
        run.weights_finite = all(bool(weight.isfinite().all()) for weight in module.parameters())
        self._read(run, depth, optimizer)
        finish(run)
        self._bench.add(run)
        if self._logger is not None:
            about = {"variant": self._variant, "seed": self._seed, **(hparams or {})}
            self._logger.log_hyperparams(about, run.metrics)
            self._logger.finalize("success")

    def _train(self, trainer: L.Trainer, module: L.LightningModule, train: DataLoader, val: DataLoader) -> int | None:
        """The step at which loss or gradient was not finite, if that ended it."""
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            try:
                trainer.fit(module, train, val)
            except NonFiniteGradientError:
                return trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return self._stop.at if self._stop else None

    def _read(self, run: Run, depth: Callable[[str], bool], optimizer: int) -> None:
        last = {record.optimizer: record for record in self.memory.records}
        mine = [record for record in self.memory.records if record.optimizer == optimizer]
        if mine:
            first = zip(mine[0].layers, mine[0].layer_norms, strict=True)
            run.depth = {layer: norm for layer, norm in first if norm is not None and depth(layer)}
            run.over_time = thin([(record.step, record.max_total_norm) for record in mine])
            norms = [n for record in self.memory.records for n in (record.max_total_norm, record.total_norm)]
            run.largest_norm = max(filter(math.isfinite, norms), default=None)
            rates = [record.clip_rate for record in last.values() if record.clip_rate is not None]
            run.clip_rate = sum(rates) / len(rates) if rates else None


class _StopWhenNotFinite(L.Callback):
    """Ends a run whose loss is NaN or infinite: it will not come back."""

    def __init__(self) -> None:
        self.at: int | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if self.at is None and loss is not None and not bool(torch.isfinite(loss)):
            self.at = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            trainer.should_stop = True


class _Reached(L.Callback):
    """After how many epochs a metric was first as good as asked."""

    def __init__(self, metric: str, level: float) -> None:
        self._metric, self._level = metric, level
        self.epoch = math.nan

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self._metric)
        if math.isnan(self.epoch) and value is not None and float(value) >= self._level:
            self.epoch = trainer.current_epoch + 1.0


class _Bar(L.Callback):
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task
        self._before = int(progress.tasks[task].completed)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = trainer.num_training_batches
        done = (trainer.current_epoch * batches + batch_idx + 1) / (batches * (trainer.max_epochs or 1))
        self._progress.update(self._task, completed=self._before + min(done, 1.0))
