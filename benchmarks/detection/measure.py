"""Carries runs out, in one or two processes, and keeps of each what tables need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import MISSING, asdict, dataclass, field, fields
from multiprocessing import get_context
from typing import Any

import torch

from .cures import cured
from .plain import metric_of
from .published.watch import Watch
from .training import Outcome, train
from .zoo import find


@dataclass(frozen=True)
class Job:
    """A run to be made: a kind, a fault of it or none, and a seed.

    Attributes:
        diagnosed: whether rules look at it, ours and others'; else it is run for its metric alone.
        remedy: whether the first remedy is to be tried.
    """

    kind: str
    fault: str | None
    seed: int
    diagnosed: bool = True
    remedy: bool = False


@dataclass
class Result:
    """What is kept of a run.

    Attributes:
        said: rule, severity and step of everything that was ever found above ``info``, in order.
        noted: the same for what is only ``info``.
        first: the rule that a user would take for the cause.
        words: the sentences that were said to a healthy run.
        others: for each published rule set the rule that fired first.
        remedy: the first remedy of that finding; ``None`` where it cannot be applied by itself.
        remedied: the metric after it.
        diagnosed: whether rules looked at it; else only the metric counts.
    """

    kind: str
    fault: str | None
    seed: int
    before: float
    after: float
    said: list[tuple[str, str, int]] = field(default_factory=list)
    noted: list[tuple[str, str, int]] = field(default_factory=list)
    first: str | None = None
    words: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    remedy: str | None = None
    remedied: float | None = None
    ended_by: str | None = None
    seconds: float = 0.0
    diagnosed: bool = True

    def plain(self) -> dict[str, Any]:
        """For JSON, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value != _DEFAULTS.get(key, ())}


_DEFAULTS = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(Result)}


def carry_out(job: Job) -> Result:
    """Makes one run, and with ``remedy`` the one after the first remedy."""
    kind, fault = find(job.kind, job.fault)
    recipe = fault.change(kind.recipe) if fault else kind.recipe
    if not job.diagnosed:
        before, after = metric_of(recipe, job.seed)
        return Result(job.kind, job.fault, job.seed, before, after, diagnosed=False)
    watch = Watch()
    outcome = train(recipe, job.seed, [watch])
    result = _kept(job, outcome)
    result.others = watch.verdicts
    if job.remedy and outcome.named_first is not None:
        finding = outcome.named_first
        better = cured(recipe, finding)
        if better is not None:
            result.remedy = finding.remedies[0]
            result.remedied = metric_of(better, job.seed)[1]
    return result


def _kept(job: Job, outcome: Outcome) -> Result:
    every = [(s.finding, s.step) for s in outcome.said]
    first = outcome.named_first
    return Result(
        job.kind,
        job.fault,
        job.seed,
        outcome.before,
        outcome.after,
        said=[(f.rule, f.severity, step) for f, step in every if f.severity != "info"],
        noted=[(f.rule, f.severity, step) for f, step in every if f.severity == "info"],
        first=first.rule if first else None,
        words=[f"{f.severity}, step {step}, {f.rule}: {f.message}" for f, step in every if job.fault is None],
        ended_by=outcome.ended_by,
        seconds=outcome.seconds,
    )


def carry_out_all(jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    """The results as they come; on one thread each, since a busy machine splits sums among more of them otherwise."""
    if processes <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(carry_out, jobs)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _be_modest) as pool:
        for future in as_completed([pool.submit(carry_out, job) for job in jobs]):
            yield future.result()


def _be_modest() -> None:
    os.nice(10)
    torch.set_num_threads(1)
