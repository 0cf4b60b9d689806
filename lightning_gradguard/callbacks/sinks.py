"""From the loggers of a Trainer to the sinks that records are written to."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger

from lightning_gradguard.callbacks.findings import MlflowFindings, WandbFindings
from lightning_gradguard.record import StepRecord
from lightning_gradguard.sinks import Sink
from lightning_gradguard.tensorboard.scalars import scalar_values
from lightning_gradguard.tensorboard.sink import TensorBoardSink


class LoggerSink(Sink):
    """Hands the scalars of a record to any Lightning logger, all in one call.

    Args:
        logger: the logger; its ``log_metrics`` does the rest.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def write(self, record: StepRecord) -> None:
        """Logs one record."""
        self.logger.log_metrics(scalar_values(record), step=record.step)


def sinks_for(logger: Any) -> list[Sink]:
    """The sinks that suit a logger: all that TensorBoard can show where it is TensorBoard's, scalars elsewhere.

    Weights & Biases and MLflow get the findings, too, as words.
    """
    # By name, since lightning.pytorch and pytorch_lightning have a class each.
    kinds = {cls.__name__ for cls in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        return [TensorBoardSink(lambda: logger.experiment, prefix=logger._prefix)]
    if "WandbLogger" in kinds:
        return [LoggerSink(logger), WandbFindings(logger)]
    if "MLFlowLogger" in kinds:
        return [LoggerSink(logger), MlflowFindings(logger)]
    return [LoggerSink(logger)]
