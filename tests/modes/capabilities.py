"""What the library can do, each as a check that any mode of training can be put to.

A check trains in the mode, compares with the plain float32 twin, and returns the largest relative deviation it found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lightning_gradguard import AutoClip, NormClip, ValueClip
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.incident.read import read_bundle
from lightning_gradguard.incident.restore import load_state
from tests.modes.modes import Mode, Outcome, stop_after_first_half
from tests.modes.training import Problem, Twin, largest_deviation, make_net

MAX_NORM = 0.5
MAX_VALUE = 0.05
BAD = 2  # the third batch

Capability = Callable[[str, Mode], float]


def see(folder: str, mode: Mode) -> float:
    """Norms of every layer are those of the whole gradient; watching changes no weight.

    What an optimizer does several times in one batch has one place: the first measurement, and the last of the run.
    """
    watched = mode.train(folder)
    twin = Twin(accumulate=mode.accumulate, optimizer=mode.optimizer)
    worst = largest_deviation(watched.weights, twin.weights)
    last = len(twin.totals) - 1
    told_of = sorted({*twin.first_of, last})
    assert sum(record.num_steps for record in watched.records) == len(twin.totals)
    for record, index in zip(watched.records, told_of, strict=True):
        layers, total = twin.layer_norms[index], twin.totals[index]
        names = [name.removeprefix("net.") for name in record.layers]
        assert names == list(layers), f"layers {names} instead of {list(layers)}"
        found = dict(zip(names, record.layer_norms, strict=True))
        worst = max(worst, *(abs(found[name] / norm - 1.0) for name, norm in layers.items()))
        worst = max(worst, abs(record.total_norm / total - 1.0))
    return worst


def clip_by_norm(folder: str, mode: Mode) -> float:
    """As torch's ``clip_grad_norm_`` over the whole gradient."""
    return _clipped(folder, mode, NormClip(MAX_NORM), lambda p: nn.utils.clip_grad_norm_(p, MAX_NORM))


def clip_by_value(folder: str, mode: Mode) -> float:
    """As torch's ``clip_grad_value_`` over the whole gradient."""
    return _clipped(folder, mode, ValueClip(MAX_VALUE), lambda p: nn.utils.clip_grad_value_(p, MAX_VALUE))


def _clipped(folder: str, mode: Mode, policy: object, by_torch: Callable[[list[nn.Parameter]], object]) -> float:
    outcome = mode.train(folder, clip=policy)
    assert {record.verdict for record in outcome.records} == {"clipped"}
    return largest_deviation(
        outcome.weights, Twin(clip=by_torch, accumulate=mode.accumulate, optimizer=mode.optimizer).weights
    )


def unit_wise(folder: str, mode: Mode) -> float:
    """Adaptive gradient clipping, as one process with whole tensors does it."""
    policy = AGC(ratio=0.05)
    outcome = mode.train(folder, clip=policy)
    assert {record.verdict for record in outcome.records} == {"clipped"}
    return largest_deviation(
        outcome.weights, Twin(policy=policy, accumulate=mode.accumulate, optimizer=mode.optimizer).weights
    )


# Also above the loss scale of the modes that have one, so that the guard and not the scaler deals with the step.
_FLOOR = 2.0**20


def skip(folder: str, mode: Mode) -> float:
    """A step with a NaN in it leaves weights and momentum alone; a live scaler does that by itself."""
    outcome = mode.train(folder, guard={"action": "skip"}, bad=[BAD])
    verdicts = [record.verdict for record in outcome.records]
    assert verdicts[BAD // mode.accumulate] in ("skipped", "overflow"), verdicts
    assert set(verdicts) <= {"ok", "skipped", "overflow"}, verdicts
    return largest_deviation(
        outcome.weights, Twin(bad=[BAD], accumulate=mode.accumulate, optimizer=mode.optimizer).weights
    )


def rollback(folder: str, mode: Mode) -> float:
    """Going back to the snapshot of the last good step undoes that step as well, and training goes on from there."""
    guard = {"action": "rollback", "rollback_after": 1, "snapshot_every_n_steps": 1, "loss_scale_floor": _FLOOR}
    outcome = mode.train(folder, guard=guard, bad=[BAD])
    verdicts = [record.verdict for record in outcome.records]
    assert verdicts[BAD // mode.accumulate] == "rolled_back", verdicts
    undone = [BAD, BAD - mode.accumulate]
    return largest_deviation(
        outcome.weights, Twin(bad=undone, accumulate=mode.accumulate, optimizer=mode.optimizer).weights
    )


def incident(folder: str, mode: Mode) -> float:
    """The bad step is on the disk, whole enough to be read back into a fresh module."""
    where = Path(folder) / "incidents"
    mode.train(folder, guard={"action": "skip", "incident_dir": str(where), "loss_scale_floor": _FLOOR}, bad=[BAD])
    found = sorted(where.glob("step-*"))
    assert len(found) == 1, found
    step = f"step {BAD // mode.accumulate}"
    assert step in (found[0] / "report.md").read_text(encoding="utf-8")
    fresh = make_net() if mode.own_loop else Problem()
    load_state(read_bundle(found[0]), fresh)
    return 0.0


def resume(folder: str, mode: Mode) -> float:
    """Half a training, a checkpoint, and the other half end where the whole training ends, bit for bit."""
    guard = None if "skip" in mode.refused else {"action": "skip"}
    train = partial(mode.train, folder, clip=AutoClip(percentile=10.0), guard=guard)
    straight = train()
    train(stop_after=stop_after_first_half(mode.accumulate))
    rest = train(resume=True)
    assert "clipped" in {record.verdict for record in rest.records}, "the statistics play no part in this test"
    assert _last(rest) == _last(straight)
    assert all(torch.equal(rest.weights[name], value) for name, value in straight.weights.items())
    return 0.0


def _last(outcome: Outcome) -> tuple[float | None, ...]:
    last = outcome.records[-1]
    assert last.threshold is not None and math.isfinite(last.threshold)
    return last.step, last.total_norm, last.threshold, last.coefficient, last.clip_rate


CAPABILITIES: dict[str, Capability] = {
    "see": see,
    "clip by norm": clip_by_norm,
    "clip by value": clip_by_value,
    "unit-wise": unit_wise,
    "skip": skip,
    "rollback": rollback,
    "incident": incident,
    "resume": resume,
}
