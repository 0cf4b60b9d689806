"""Breaks one step of many small trainings in every way, and counts what the guard sees and names.

    python -m benchmarks.fault_matrix            # every case, some ten minutes on two cores
    python -m benchmarks.fault_matrix --sample 25

Faults are generated: {kind} x {place} x {model} x {mode}; the layer is drawn from a generator seeded by the case. Each
runs through a real Trainer with NonFiniteGuard("rollback", spikes=SpikeRule(), incident_dir=...). A case counts as

- detected: the guard acted at the very step of the fault, and afterwards every weight is finite and as it was before
  that step (or, after a rollback, as it was at the snapshot);
- absorbed: the guard let the step pass, and rightly: without any guard the step moves no weight much further than a
  healthy step does (a saturating gate swallows 1e30, a ReLU swallows -Inf);
- located: the localisation, in the run or (manual optimization) in the replay, names the entry of the batch, the
  parameter, or the module of the injected fault. A finite 1e30 counts as located by the first value near the limit.

The same number of runs without a fault counts false alarms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradguard import NonFiniteGuard
from lightning_gradguard.incident.locate import Localisation
from lightning_gradguard.incident.read import read_bundle
from lightning_gradguard.incident.replay import replay
from lightning_gradguard.record import StepRecord
from lightning_gradguard.spikes import SpikeRule

NUM_STEPS = 14
BAD_STEP = 11
WARMUP = 8
BATCH = 8


def _zero_over_zero(x: Tensor) -> Tensor:
    return x * 0 / (x * 0)


def _over_zero(x: Tensor, sign: float) -> Tensor:
    return (x * 0 + sign) / (x * 0).abs()


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": _zero_over_zero,
    "+Inf": lambda x: _over_zero(x, 1.0),
    "-Inf": lambda x: _over_zero(x, -1.0),
    "1e30": lambda x: x * 0 + 1e30,
    "fp16 overflow": lambda x: (x * 0 + 1e5).half().to(x.dtype),
}
PLACES = ("batch", "parameter", "forward", "backward", "loss")
MODES = ("fp32", "bf16", "fp16", "accumulate", "manual")


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.proj(x.view(-1, 4, 6)))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x.view(-1, 4, 6))).mean(1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 6)), nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "MLP": (_mlp, ("0", "2", "4")),
    "CNN+BN": (_cnn, ("1", "2", "4", "5", "8")),
    "LSTM": (Lstm, ("proj", "lstm", "head")),
    "Transformer": (Transformer, ("embed", "block.norm1", "block.linear1", "block.linear2", "block.norm2", "head")),
}


@dataclass(frozen=True)
class Case:
    """One fault; ``place`` is ``None`` for a healthy run."""

    kind: str
    place: str | None
    model: str
    mode: str

    @property
    def layer(self) -> str:
        """The layer that is hit, drawn by the case."""
        return random.Random(repr((self.kind, self.place, self.model, self.mode))).choice(MODELS[self.model][1])

    @property
    def target(self) -> str:
        """What a localisation should name."""
        if self.place == "parameter":
            return f"net.{self.layer}.{next(n for n, _ in _layer_of(MODELS[self.model][0](), self.layer))}"
        return {"batch": "batch[0]", "loss": ""}.get(self.place or "", f"net.{self.layer}")


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    verdict: str
    cause: str | None
    detected: bool
    absorbed: bool
    located: bool
    named: str
    alarms: int


def cases() -> Iterator[Case]:
    """All of them, in a fixed order."""
    for kind, place, model, mode in itertools.product(KINDS, PLACES, MODELS, MODES):
        yield Case(kind, place, model, mode)


def sample(count: int) -> list[Case]:
    """Some, such that kinds, places, models and modes are mixed evenly."""
    found = list(cases())
    random.Random(0).shuffle(found)
    return found[:count]


class Data(torch.utils.data.Dataset):
    def __init__(self, num_batches: int, spoil: Callable[[Tensor], Tensor] | None, bad_batch: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(num_batches * BATCH, 24, generator=generator)
        self.y = (self.x[:, :4] + 0.3 * self.x[:, 4:8]).argmax(1)
        if spoil is not None:
            self.x[bad_batch * BATCH, :3] = spoil(self.x[bad_batch * BATCH, :3])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.x[index], self.y[index], index // BATCH


class Module(pl.LightningModule):
    """Trains one of the models, and breaks at one batch."""

    def __init__(self, case: Case, bad_batch: int) -> None:
        super().__init__()
        self.case = case
        self.bad_batch = bad_batch
        self.net = MODELS[case.model][0]()
        self.automatic_optimization = case.mode != "manual"
        self.bad_now = False
        self.clean: list[list[Tensor]] = []  # before each batch, and before the fault
        self.states: list[list[Tensor]] = []  # before each batch, after the fault
        if case.place in ("forward", "backward"):
            self.net.get_submodule(case.layer).register_forward_hook(self._spoil_output)

    def _spoil(self, x: Tensor) -> Tensor:
        return torch.cat([KINDS[self.case.kind](x[:1]), x[1:]])

    def _spoil_output(self, layer: nn.Module, args: Any, output: Any) -> Any:
        if not self.bad_now:
            return output
        first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
        if self.case.place == "forward":
            first = self._spoil(first)
        else:
            first.register_hook(self._spoil)
        return (first, *rest) if rest else first

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.bad_now = int(batch[2][0]) == self.bad_batch
        if self.automatic_optimization:
            return self._loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self._loss(batch))
            optimizer.step()
        return None

    def _loss(self, batch: Any) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]).float(), batch[1])
        if self.bad_now and self.case.place == "loss":
            loss = loss * 1e30 if self.case.kind == "1e30" else loss + KINDS[self.case.kind](loss)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.clean.append(self._state())
        if int(batch[2][0]) == self.bad_batch and self.case.place == "parameter":
            with torch.no_grad():
                parameter = self.get_parameter(self.case.target)
                parameter.view(-1)[:1] = KINDS[self.case.kind](parameter.view(-1)[:1])
        self.states.append(self._state())

    def on_train_end(self) -> None:
        self.states.append(self._state())

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters()]

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        if self.automatic_optimization:
            return torch.optim.Adam(parameters, lr=1e-3)
        half = len(parameters) // 2
        return [torch.optim.Adam(parameters[:half], lr=1e-3), torch.optim.Adam(parameters[half:], lr=1e-3)]


def train(case: Case, guard: NonFiniteGuard | None, folder: Path) -> Module:
    """One run; the fault hits optimizer step ``BAD_STEP``."""
    per_step = 3 if case.mode == "accumulate" else 1
    bad_batch = BAD_STEP * per_step + per_step // 2 if case.place is not None else -1
    torch.manual_seed(sum(map(ord, repr(case))))
    spoil = KINDS[case.kind] if case.place == "batch" else None
    module = Module(case, bad_batch)
    options: dict[str, Any] = {"precision": "bf16-mixed"} if case.mode == "bf16" else {}
    if case.mode == "fp16":
        options["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
    if case.mode == "accumulate":
        options["accumulate_grad_batches"] = 3
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[guard] if guard else [], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Data(NUM_STEPS * per_step, spoil, bad_batch), batch_size=BATCH))
    return module


def make_guard(folder: Path) -> NonFiniteGuard:
    """Every overflow is looked at, also those that a scaler would deal with."""
    return NonFiniteGuard(
        "rollback", incident_dir=folder, max_incidents=1, snapshot_every_n_steps=1, loss_scale_floor=2.0**40,
        spikes=SpikeRule(warmup=WARMUP),
    )  # fmt: skip


def run_case(case: Case) -> Result:
    """Runs one case, and, if the guard let it pass, its unguarded twin."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        guard = make_guard(folder / "incidents")
        module = train(case, guard, folder)
        bad = [record for record in guard.records if record.verdict not in ("ok", "clipped")]
        if case.place is None:
            return Result("ok", None, False, False, False, "", len(bad))
        at_step = [record for record in bad if record.step == BAD_STEP]
        early = [record for record in bad if record.step < BAD_STEP]
        detected = bool(at_step) and _weights_kept(case, module, at_step)
        absorbed = not at_step and _is_harmless(case, folder)
        named = _named(case, folder / "incidents") if at_step else "-"
        first = at_step[0] if at_step else None
        return Result(
            first.verdict if first else "passed", first.cause if first else None, detected, absorbed,
            detected and named == case.target, named, len(early),
        )  # fmt: skip


def _weights_kept(case: Case, module: Module, records: list[StepRecord]) -> bool:
    """Finite from the bad step to the end, and unmoved by it, or put back to before it."""
    per_step = 3 if case.mode == "accumulate" else 1
    before, after = module.states[module.bad_batch], module.states[(BAD_STEP + 1) * per_step]
    if not all(bool(value.isfinite().all()) for value in [*after, *module.states[-1]]):
        return False
    kept = slice(None)
    if case.mode == "manual" and len(records) < 2:  # the other optimizer's step was good, and went through
        half = len(before) // 2
        kept = slice(0, half) if records[0].optimizer == 0 else slice(half, None)
    if any(record.verdict == "rolled_back" for record in records):
        # The snapshot of one optimizer is as old as its last good step; of the first of two, the second one's.
        before = module.clean[BAD_STEP if case.mode == "manual" else (BAD_STEP - 1) * per_step]
    return all(torch.equal(a, b) for a, b in zip(after[kept], before[kept], strict=True))


def _is_harmless(case: Case, folder: Path) -> bool:
    """Without a guard, the step moves the weights no further than a healthy one does (Adam's are all of one size)."""
    module = train(case, None, folder)
    if not all(bool(value.isfinite().all()) for value in [*module.states[-1], *module.net.buffers()]):
        return False
    steps = [_distance(a, b) for a, b in itertools.pairwise(module.states)]
    per_step = 3 if case.mode == "accumulate" else 1
    bad = slice(BAD_STEP * per_step, (BAD_STEP + 1) * per_step)
    return max(steps[bad]) <= 2.0 * max(steps[per_step : bad.start])


def _distance(left: list[Tensor], right: list[Tensor]) -> float:
    return math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(left, right, strict=True)))


def _named(case: Case, incidents: Path) -> str:
    """What the localisation names."""
    bundle = next(incidents.glob("step-*"), None)
    if bundle is None:
        return "no bundle"
    report = read_bundle(bundle).report
    if report["localisation"] is None:
        per_step = 3 if case.mode == "accumulate" else 1
        found = replay(bundle, Module(case, BAD_STEP * per_step + per_step // 2)).localisation
        assert found is not None or case.kind == "1e30"
        return _place(asdict(found), case) if isinstance(found, Localisation) else "-"
    return _place(report["localisation"], case)


def _place(found: dict[str, Any], case: Case) -> str:
    origin = found["origin"]
    if case.kind == "1e30" and found["near_limit"]:
        first = found["near_limit"][0]
        kind, _, name = first["operator"].partition(" ")
        return name if kind in ("batch", "parameter") else str(first["module"])
    if origin is None:
        return "-"
    return str(origin["name"] if origin["place"] != "operator" else origin["call"]["module"])


def _layer_of(net: nn.Module, layer: str) -> list[tuple[str, nn.Parameter]]:
    return list(net.get_submodule(layer).named_parameters())


def table(found: dict[Case, Result], healthy: list[Result]) -> str:
    """Counts by kind, by place, by model and by mode, and the cases that were missed or misplaced."""
    lines = ["| | cases | detected | absorbed, rightly | located exactly |", "|---|---|---|---|---|"]
    for group in ("kind", "place", "model", "mode"):
        for value in dict.fromkeys(str(getattr(case, group)) for case in found):
            lines.append(_row(value, [r for c, r in found.items() if str(getattr(c, group)) == value]))
    lines.append(_row("**all**", list(found.values())))
    alarms = sum(result.alarms > 0 for result in [*healthy, *found.values()])
    lines += ["", f"False alarms: {alarms} in {len(healthy)} healthy runs and before {len(found)} faults."]
    for case, result in found.items():
        if not (result.detected or result.absorbed):
            lines.append(f"- MISSED {case}: {result}")
        elif result.detected and not result.located:
            lines.append(f"- misplaced {case.kind}, {case.place}, {case.model}, {case.mode}: "
                         f"{result.named!r} instead of {case.target!r}")  # fmt: skip
    return "\n".join(lines)


def _row(title: str, results: list[Result]) -> str:
    counts = Counter(
        name for result in results for name in ("detected", "absorbed", "located") if getattr(result, name)
    )
    due = len(results) - counts["absorbed"]
    return (
        f"| {title} | {len(results)} | {counts['detected']} of {due} | {counts['absorbed']} | "
        f"{counts['located']} of {counts['detected']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="only so many cases, drawn evenly")
    parser.add_argument("--json", type=Path, help="write every result there")
    arguments = parser.parse_args()
    import logging

    from rich.progress import track

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    chosen = sample(arguments.sample) if arguments.sample else list(cases())
    found = {case: run_case(case) for case in track(chosen, "faults")}
    twins = [Case(str(index), None, case.model, case.mode) for index, case in enumerate(chosen)]
    healthy = [run_case(case) for case in track(twins, "healthy")]
    print(table(found, healthy))
    if arguments.json:
        rows = [{**asdict(case), "layer": case.layer, **asdict(result)} for case, result in found.items()]
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
