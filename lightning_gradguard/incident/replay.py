"""Runs the step of an incident bundle again, without a Trainer, and says what came of it."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_gradguard.incident.bundle import MicroBatch, digest_gradient
from lightning_gradguard.incident.locate import Localisation, Step
from lightning_gradguard.incident.read import read_bundle
from lightning_gradguard.incident.runner import Outcome, StepFailed, StepRunner, as_it_was
from lightning_gradguard.incident.samples import SampleReport, find_samples


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found.

    Attributes:
        step: of the incident.
        optimizer: of the incident.
        reproduced: whether a parameter that had a non-finite gradient (or a buffer that went bad) had one again; for an
            incident whose gradients were finite: whether they came out the same, or, where several processes had
            averaged theirs, at least half as large.
        exact: whether every gradient is the same to the bit; ``None`` where the incident's were averaged over
            processes, so that one process cannot tell.
        expected: names of the parameters and buffers that were bad at the incident.
        found: those that were bad in the replay.
        loss: the loss of each batch of the step.
        localisation: where it began.
        anomaly: the trace of autograd's own anomaly detection, if it was asked for.
        samples: which samples did it, if that was asked for.
        error: what the step raised, for an incident that was an exception: reproduced if it is of the same class.
    """

    step: int
    optimizer: int
    reproduced: bool
    exact: bool | None
    expected: tuple[str, ...]
    found: tuple[str, ...]
    loss: tuple[float, ...]
    localisation: Localisation | None
    anomaly: str | None = None
    samples: SampleReport | None = None
    error: str | None = None

    def __str__(self) -> str:
        verdict = "reproduced" if self.reproduced else "NOT reproduced"
        bits = {True: ", bit for bit", False: ", not bit for bit", None: ""}[self.exact if self.reproduced else None]
        losses = ", ".join(f"{value:.6g}" for value in self.loss)
        lines = [
            f"step {self.step}, optimizer {self.optimizer}: {verdict}{bits}",
            f"  loss: {losses or 'none'}",
            f"  non-finite then: {_names(self.expected)}",
            f"  non-finite now:  {_names(self.found)}",
        ]
        if self.error is not None:
            lines.append(f"  {self.error}")
        if self.localisation is not None:
            lines.append(f"  where: {self.localisation}")
            lines += [f"  near the limit before it: {e.describe()}" for e in self.localisation.near_limit]
        if self.samples is not None:
            lines += [f"  {line}" for line in str(self.samples).splitlines()]
        if self.anomaly is not None:
            lines += ["  autograd's anomaly detection:", *(f"    {line}" for line in self.anomaly.splitlines())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def replay(
    bundle: str | os.PathLike[str],
    module: nn.Module,
    *,
    step: Step | None = None,
    anomaly: bool = False,
    samples: bool = False,
) -> ReplayReport:
    """Runs the step of an incident again and compares.

    The module gets the weights, buffers and modes of the incident, the generators their state before each batch; the
    global state of the process is put back afterwards. The batch goes to the module's device.

    Args:
        bundle: folder of the incident.
        module: built as it was for the run; its weights are replaced. A LightningModule's ``training_step`` is called,
            with logging made harmless; so is any module's that has one.
        step: ``step(module, batch)`` returns the loss, for a module without ``training_step``.
        anomaly: run once more under ``torch.autograd.detect_anomaly`` and add its trace.
        samples: find out which samples of the batch did it; some twenty more steps for one sample among 256.

    Raises:
        BundleError: if the bundle cannot be used, does not fit the module, or the step raises.
        TypeError: if there is neither a ``training_step`` nor a ``step``.

    Example:
        >>> print(replay("incidents/step-000412-opt0", MyModule()))  # doctest: +SKIP
    """
    if step is None and not callable(getattr(module, "training_step", None)):
        raise TypeError(
            f"{type(module).__name__} has no training_step; pass step=, a function of (module, batch) giving the loss"
        )
    checked = read_bundle(bundle)
    with as_it_was(checked):
        runner = StepRunner(checked, module, step)
        raised = checked.report.get("exception")
        return _replay(runner, anomaly, samples) if raised is None else _replay_exception(runner, raised)


def _replay(runner: StepRunner, anomaly: bool, samples: bool) -> ReplayReport:
    batches, outcome = _first_that_goes_bad(runner)
    return ReplayReport(
        **_compare(runner, outcome),
        step=runner.bundle.report["step"],
        optimizer=runner.bundle.report["optimizer"],
        loss=outcome.losses,
        localisation=runner.localise(batches),
        anomaly=runner.anomaly(batches) if anomaly else None,
        samples=find_samples(runner, batches) if samples else None,
    )


def _replay_exception(runner: StepRunner, raised: dict[str, str]) -> ReplayReport:
    """Of a step that ended in an exception: whether it does so again, and where what it complained about began."""
    error: StepFailed | None = None
    losses: tuple[float, ...] = ()
    try:
        losses = runner.run(runner.batches).losses
    except StepFailed as problem:
        error = problem
    return ReplayReport(
        step=runner.bundle.report["step"],
        optimizer=runner.bundle.report["optimizer"],
        reproduced=error is not None and type(error.__cause__).__name__ == raised["type"],
        exact=None,
        expected=(),
        found=(),
        loss=losses,
        localisation=runner.localise(runner.batches),
        error=str(error) if error is not None else f"the step did not raise {raised['type']} again",
    )


def _first_that_goes_bad(runner: StepRunner) -> tuple[Sequence[MicroBatch], Outcome]:
    """The batches of the first process whose step goes bad, and what it came to; those of the first one if none does.

    A bundle of one process has only its own.
    """
    processes = dict.fromkeys(micro.process for micro in runner.batches)
    first = None
    for process in processes:
        batches = [micro for micro in runner.batches if micro.process == process]
        outcome = runner.run(batches)
        if outcome.bad_gradients or len(processes) == 1:
            return batches, outcome
        first = first or (batches, outcome)
    assert first is not None  # a bundle has a batch
    return first


def _compare(runner: StepRunner, outcome: Outcome) -> dict[str, Any]:
    """Tells whether it is the same step again: which names are bad, whether those were expected, bit for bit or not."""
    recorded = runner.bundle.report["gradients"]
    bad_buffers = runner.bundle.report["bad_buffers"]
    expected = [name for name, entry in recorded.items() if entry["nan"] or entry["inf"]] + bad_buffers
    found = [name for name in outcome.bad_gradients if name in recorded]
    found += [name for name in outcome.bad_buffers if name in bad_buffers]
    is_one_process = (runner.config.get("world_size") or 1) == 1
    digests = {name: digest_gradient(grad)["sha256"] for name, grad in outcome.gradients.items()}
    exact = is_one_process and all(digests.get(name) == entry["sha256"] for name, entry in recorded.items())
    if expected:
        reproduced = bool(set(expected) & set(found))
    else:
        reproduced = exact if is_one_process else _norm(outcome) >= 0.5 * _recorded_norm(runner)
    return {
        "reproduced": reproduced,
        "exact": exact if is_one_process else None,
        "expected": tuple(expected),
        "found": tuple(found),
    }


def _norm(outcome: Outcome) -> float:
    return math.sqrt(sum(float(grad.double().norm()) ** 2 for grad in outcome.gradients.values()))


def _recorded_norm(runner: StepRunner) -> float:
    history = runner.bundle.report["history"]
    last = history[-1][1] if history and isinstance(history[-1], list) and len(history[-1]) > 1 else None
    return float(last) if isinstance(last, int | float) else math.inf


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
