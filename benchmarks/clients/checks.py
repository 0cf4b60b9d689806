"""What is tried with one model: plain, watched, everything on, and a batch with NaN, which is replayed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from benchmarks.clients.models import Train
from lightning_gradguard import GradGuard, GradientNormMonitor, ZClip, replay
from lightning_gradguard.callbacks.base import GradientCallback

BAD_BATCH = 7
UNCLIPPED = {"gradient_clip_val": None}  # GluonTS clips by 10 unless told otherwise


@dataclass
class Run:
    """What a training left behind.

    Attributes:
        state: weights and buffers, and the state of torch's generator, when training ended.
        norms: of all gradients before each step, from torch's own function.
        error: what ended it.
        callback: ours, as the package used it: some copy what they get.
        module: what was trained.
        spoiled: tensors of the bad batch that NaN was written into.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    error: BaseException | None = None
    callback: GradientCallback | None = None
    module: Any = None
    spoiled: int = 0


class Shared(Callback):
    """A callback that a package may deep-copy: the copy is the same object."""

    def __deepcopy__(self, memo: Any) -> Shared:
        return self

    def __reduce__(self) -> Any:
        return (Shared, ())


class Tap(Shared):
    """Takes down what a run leaves behind; changes nothing."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.run.module = pl_module
        self.run.callback = next((c for c in trainer.callbacks if isinstance(c, GradientCallback)), None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.run.norms.append(float(torch.nn.utils.get_total_norm(grads)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.run.state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.run.state["generator"] = torch.get_rng_state()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.run.error = exception


class Spoiler(Shared):
    """Makes one row of every floating-point tensor of one batch NaN."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop._batches_that_stepped == BAD_BATCH:
            for tensor in tensors_in(batch):
                if tensor.is_floating_point() and tensor.numel():
                    (tensor[0] if tensor.ndim else tensor).fill_(float("nan"))
                    self.run.spoiled += 1


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yields the tensors of a batch, also those in its objects' attributes."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and is_dataclass(value):
        yield from tensors_in([getattr(value, one.name) for one in fields(value)], depth - 1)
    elif depth and hasattr(value, "to_dict"):  # a graph
        yield from tensors_in(value.to_dict(), depth - 1)
    elif depth and hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), depth - 1)


def train(model: Train, callback: GradientCallback | None = None, spoil: bool = False, **options: Any) -> Run:
    """Trains a model once, always from the same seed."""
    run = Run()
    callbacks: list[Callback] = [*([Spoiler(run)] if spoil else []), Tap(run), *([callback] if callback else [])]
    pl.seed_everything(1, verbose=False)
    try:
        model(callbacks, options)
    except Exception as error:
        run.error = run.error or error
    return run


def check(model: Train, folder: Path) -> dict[str, str]:
    """Returns a row of the table: what came of each trial, in words."""
    plain = train(model)
    if plain.error is not None:
        return {"plain": failed(plain.error)}
    passed = GradientNormMonitor(log_every_n_steps=1)
    watched = train(model, passed)
    findings = watched.callback.findings if watched.callback else []
    repeatable = same_bits(plain, train(model))
    row = {
        "plain": f"{len(plain.norms)} steps" + ("" if repeatable == "same bits" else ", not repeatable"),
        "watched": failed(watched.error) if watched.error else same_bits(plain, watched),
        "norms": norms(watched),
        "findings": ", ".join(sorted({f"{finding.rule} ({finding.severity})" for finding in findings})) or "none",
        "said": " ".join(finding.message for finding in findings),
        "records": where_records_are(passed, watched),
        "pickle": attempt(lambda: pickle.dumps(watched.callback)),
    }
    everything = train(model, GradGuard(clip=ZClip(), log_every_n_steps=1, incident_dir=folder / "none"), **UNCLIPPED)
    row["everything on"] = failed(everything.error) if everything.error else ends_finite(everything)
    guarded = train(model, GradGuard(log_every_n_steps=1, incident_dir=folder / "bad"), spoil=True, **UNCLIPPED)
    row["NaN batch"] = what_came_of_nan(guarded)
    row["replay"] = replayed(guarded, folder / "bad")
    return row


def failed(error: BaseException) -> str:
    """An error in few words."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:80]}".replace("|", "/")


def same_bits(one: Run, other: Run) -> str:
    """Whether two runs left the same weights, buffers and generator behind."""
    different = [
        name
        for name in one.state.keys() | other.state.keys()
        if name not in one.state or name not in other.state or not torch.equal(one.state[name], other.state[name])
    ]
    return "same bits" if one.state and not different else f"differs: {', '.join(sorted(different)[:3]) or 'no state'}"


def norms(run: Run) -> str:
    """The largest relative deviation of our norms from torch's."""
    records = run.callback.records if run.callback else []
    if len(records) != len(run.norms):
        return f"{len(records)} records of {len(run.norms)} steps"
    pairs = zip((record.total_norm for record in records), run.norms, strict=True)
    return f"{max((abs(ours - theirs) / theirs for ours, theirs in pairs if theirs), default=0.0):.0e}"


def where_records_are(passed: GradientCallback, run: Run) -> str:
    """Whether the object that the user holds has the records, or a copy that the package made."""
    if run.callback is None:
        return "no callback"
    if run.callback is passed:
        return "yes"
    return "yes, of a copy" if passed.records else "NO: in a copy"


def ends_finite(run: Run) -> str:
    """How a run with everything on ended."""
    assert run.callback is not None
    finite = all(bool(value.isfinite().all()) for value in run.state.values() if value.is_floating_point())
    bad = sum(record.verdict not in ("ok", "clipped") for record in run.callback.records)
    clipped = sum(record.verdict == "clipped" for record in run.callback.records)
    return f"{'finite' if finite else 'NOT finite'}, {clipped} clipped, {bad} bad"


def what_came_of_nan(run: Run) -> str:
    """Skipped, an exception of the model's own, or nothing, since the model masks NaN."""
    if run.error is not None:
        return f"exception: {failed(run.error)}"
    skipped = run.callback.records[-1].skipped_total if run.callback and run.callback.records else 0
    if skipped:
        return f"skipped {skipped}, {ends_finite(run).split(',')[0]}"
    if not run.spoiled:
        return "no floating-point tensor was found in the batch"
    return f"no gradient was NaN, {ends_finite(run).split(',')[0]}"


def replayed(run: Run, folder: Path) -> str:
    """Whether the bad step is reproduced from its bundle by the module it happened to."""
    bundles = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if not bundles:
        return "no bundle"
    try:
        report = replay(bundles[0], run.module)
    except Exception as error:
        return failed(error)
    return "reproduced" + (", bit for bit" if report.exact else "") if report.reproduced else "NOT reproduced"


def attempt(action: Callable[[], Any]) -> str:
    """Yes, or why not."""
    try:
        action()
    except Exception as error:
        return failed(error)
    return "yes"
