"""Findings where Weights & Biases and MLflow show words: a table, an artifact, and a verdict to sort runs by."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, final

from lightning_gradguard.record import Finding, StepRecord
from lightning_gradguard.report.summary import gravest
from lightning_gradguard.sinks import Sink
from lightning_gradguard.tensorboard.diagnosis import finding_markdown

_COLUMNS = ["step", "optimizer", "severity", "rule", "message", "first remedy"]


class FindingsSink(Sink):
    """Hands the findings of a run to a logger: all of them whenever one is new, changes, or has cleared.

    Args:
        logger: a Lightning logger.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._found: dict[tuple[int, str], Finding] = {}  # by optimizer and rule

    def write(self, record: StepRecord) -> None:
        """Shows what is new at one record, if anything is."""
        news = {(record.optimizer, finding.rule): finding for finding in record.findings}
        if all(_says(self._found.get(key)) == _says(finding) for key, finding in news.items()):
            return
        self._found = dict(sorted({**self._found, **news}.items(), key=lambda item: item[1].step))
        self._show(record.step, self._found)

    @property
    def _verdict(self) -> str:
        finding = gravest(list(self._found.values()))
        return "" if finding is None else f"{finding.severity}: {finding.rule}"

    @abstractmethod
    def _show(self, step: int, found: dict[tuple[int, str], Finding]) -> None:
        """Shows all findings up to now."""


def _says(finding: Finding | None) -> tuple[object, ...] | None:
    """What a reader sees of a finding, but for how long it has held."""
    return None if finding is None else (finding.severity, finding.message, finding.until)


@final
class WandbFindings(FindingsSink):
    """A table ``gradguard/findings``, and ``gradguard/verdict`` in the run's summary, a column of the runs' table."""

    def _show(self, step: int, found: dict[tuple[int, str], Finding]) -> None:
        rows = [
            [f.step, optimizer, f.severity, f.rule, f.message, next(iter(f.remedies), "")]
            for (optimizer, _), f in found.items()
        ]
        self.logger.log_table("gradguard/findings", columns=_COLUMNS, data=rows, step=step)
        self.logger.experiment.summary["gradguard/verdict"] = self._verdict


@final
class MlflowFindings(FindingsSink):
    """An artifact ``gradguard/findings.md``, and a tag ``gradguard.verdict`` to search runs by."""

    def _show(self, step: int, found: dict[tuple[int, str], Finding]) -> None:
        text = "\n\n".join(finding_markdown(finding) for finding in found.values())
        client, run = self.logger.experiment, self.logger.run_id
        client.log_text(run, text, "gradguard/findings.md")
        client.set_tag(run, "gradguard.verdict", self._verdict)
