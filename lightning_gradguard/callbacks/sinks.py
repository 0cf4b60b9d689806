"""From the loggers of a Trainer to the sinks that records are written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import Logger

from lightning_gradguard.callbacks.csv_saves import CsvSaves
from lightning_gradguard.callbacks.findings import MlflowFindings, WandbFindings
from lightning_gradguard.callbacks.stand_in import StandIn
from lightning_gradguard.harmless.part import Part
from lightning_gradguard.record import StepRecord
from lightning_gradguard.sinks import Sink
from lightning_gradguard.tensorboard.scalars import scalar_values
from lightning_gradguard.tensorboard.sink import TensorBoardSink


class LoggerSink(Sink):
    """Hands the scalars of records to any Lightning logger: in the user's row of their step, with its epoch.

    Lightning logs the user's numbers of a step after the batch, in one call. Ours wait for that call and go with it;
    where it does not come, they make a row of their own, with the epoch in it as Lightning has it in its rows.

    Args:
        logger: the logger; its ``log_metrics`` does the rest.
        epoch: gives the epoch of now.
    """

    def __init__(self, logger: Logger, epoch: Callable[[], int]) -> None:
        self.logger = logger
        self._epoch = epoch
        self._step = -1
        self._values: dict[str, float] = {}  # of that step, which wait
        self._stand_in: StandIn | None = None
        name = type(logger).__name__
        self._saves = CsvSaves(logger) if "CSVLogger" in _kinds(logger) else None
        self._joining = Part(f"the share of rows in {name}", "our numbers stand in rows of their own")
        self._own_rows = Part(f"the log of our own rows in {name}", "it gets no more records", foreign=True)

    def write(self, record: StepRecord) -> None:
        """Keeps the scalars of one record until :meth:`wait_for_row` or :meth:`flush`."""
        if self._saves is not None and self._saves.part.gone:
            return
        if record.step != self._step:
            self.flush()
        self._step = record.step
        self._values |= {**scalar_values(record), "epoch": self._epoch()}

    def wait_for_row(self) -> None:
        """Joins the next row that Lightning logs of the step; it is about to."""
        self._joining.run(self._join)

    def flush(self) -> None:
        """Logs what waits as a row of its own."""
        if self._values and self._saves is not None:
            self._saves.part.run(self._saves.expect, self._values)
        if self._stand_in is not None:
            self._stand_in.leave()
            self._stand_in = None
        if self._values:
            self._own_rows.run(self._log_own_row)

    def close(self) -> None:
        """Logs what waits."""
        self.flush()
        if self._saves is not None:
            self._saves.leave()

    def _join(self) -> None:
        if self._values and self._saves is not None:
            self._saves.part.run(self._saves.expect, self._values)
        if self._values and self._stand_in is None:
            self._stand_in = StandIn(self.logger, "log_metrics", self._log_together)

    def _log_own_row(self) -> None:
        values, self._values = self._values, {}
        self.logger.log_metrics(values, self._step)

    def _log_together(self, log_metrics: Callable[..., Any], *args: Any, **row: Any) -> Any:
        """Logs the user's row with ours in it; any other row as it is."""
        together = None if args else self._joining.run(self._with_ours, **row)
        if together is None:
            return log_metrics(*args, **row)
        logged = self._joining.run(log_metrics, **together)
        return log_metrics(**row) if self._joining.gone else logged

    def _with_ours(self, **row: Any) -> dict[str, Any] | None:
        """Returns the row that Lightning logs of the step, with its epoch, and ours; ``None`` for any other row."""
        if set(row) != {"metrics", "step"} or row["step"] != self._step or "epoch" not in row["metrics"]:
            return None
        assert self._stand_in is not None
        self._stand_in.leave()
        values, self._values, self._stand_in = self._values, {}, None
        return {**row, "metrics": {**values, **row["metrics"]}}


def sinks_for(logger: Any, epoch: Callable[[], int]) -> list[Sink]:
    """The sinks that suit a logger: all that TensorBoard can show where it is TensorBoard's, scalars elsewhere.

    Weights & Biases and MLflow get the findings, too, as words.

    Args:
        logger: of the Trainer.
        epoch: gives the epoch of now.
    """
    kinds = _kinds(logger)
    if "TensorBoardLogger" in kinds:
        return [TensorBoardSink(lambda: logger.experiment, prefix=logger._prefix)]
    found: list[Sink] = [LoggerSink(logger, epoch)]
    found += [WandbFindings(logger)] if "WandbLogger" in kinds else []
    found += [MlflowFindings(logger)] if "MLFlowLogger" in kinds else []
    return found


def _kinds(logger: Any) -> set[str]:
    """Names of a logger's classes, since ``lightning.pytorch`` and ``pytorch_lightning`` have a class each."""
    return {cls.__name__ for cls in type(logger).__mro__}
