"""From the loggers of a Trainer to the sinks that records are written to."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger

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


def sink_for(logger: Any) -> Sink:
    """The sink that suits a logger: all that TensorBoard can show where it is TensorBoard's, scalars elsewhere."""
    # By name, since lightning.pytorch and pytorch_lightning have a class each.
    if any(cls.__name__ == "TensorBoardLogger" for cls in type(logger).__mro__):
        return TensorBoardSink(lambda: logger.experiment, prefix=logger._prefix)
    return LoggerSink(logger)
