"""The last words of a run: its summary, from records, pipelines and what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl

from lightning_gradguard.callbacks.console import how_it_ended, say, what_next
from lightning_gradguard.callbacks.folders import board_folder
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.report.live import ConsoleSink
from lightning_gradguard.report.records_file import RecordsFile
from lightning_gradguard.report.summary import Summary
from lightning_gradguard.sinks import JsonlSink, Sink


def tell_the_end(
    console: ConsoleSink,
    pipelines: Sequence[GradientPipeline],
    sinks: Sequence[Sink],
    bundles: Sequence[Path],
    trainer: pl.Trainer,
    exception: BaseException | None,
) -> None:
    """Says how the run went, however it ended: steps, findings, what was saved, and what to type next.

    Args:
        console: what it is said through; it says it once.
        pipelines: of the run.
        sinks: among them the one that writes records, if there is one.
        bundles: the incidents that were saved.
        trainer: whose fit it was.
        exception: what ended it, if anything did.
    """
    diagnoses = [pipeline.diagnosis for pipeline in pipelines if pipeline.diagnosis]
    holding = {finding.rule for diagnosis in diagnoses for finding in diagnosis.findings}
    cleared = {finding.rule for diagnosis in diagnoses for finding in diagnosis.cleared} - holding
    by_index = {pipeline.optimizer_index: pipeline for pipeline in pipelines}
    try:
        console.end(
            [brought_up_to_date(summary, by_index[summary.optimizer]) for summary in console.summaries()],
            how=how_it_ended(trainer, exception, stopped=any(pipeline.should_stop for pipeline in pipelines)),
            cleared=cleared,
            after=what_next(records_path(sinks), board_folder(trainer), bundles),
        )
    except Exception as problem:  # a device that failed fails here again: the user is to see the first failure
        say("info", f"GradGuard cannot sum this run up: {type(problem).__name__}: {problem}")


def brought_up_to_date(summary: Summary, pipeline: GradientPipeline) -> Summary:
    """The summary of records with the steps since the last one, and with findings as they stand now."""
    totals = pipeline.totals()
    found = [*pipeline.diagnosis.findings, *pipeline.diagnosis.cleared] if pipeline.diagnosis else []
    first_said = {finding.rule: finding.step for finding in summary.findings}
    found = [replace(finding, step=first_said.get(finding.rule, finding.step)) for finding in found]
    others = [finding for finding in summary.findings if finding.rule not in {one.rule for one in found}]
    return replace(
        summary,
        steps=totals.steps,
        clipped=totals.clipped,
        nonfinite=max(summary.nonfinite, totals.nonfinite),
        skipped=totals.skipped,
        findings=(*found, *others),
    )


def records_path(sinks: Sequence[Sink]) -> Path | None:
    """What ``gradguard report`` takes: the folder that holds our own file, or a file of the user's."""
    for sink in sinks:
        if isinstance(sink, RecordsFile):
            return sink.path.parent
        if isinstance(sink, JsonlSink):
            return sink.path
    return None
