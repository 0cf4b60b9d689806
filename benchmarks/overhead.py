"""What our callbacks add to a training step, beside Lightning's own clipping and beside other tools.

    python -m benchmarks.overhead [--quick] [--workloads cnn mlp gpt cnn20 lstm gan] [--name overhead]

In hooks: each variant takes turns with clipping and with nothing at all, inside one fit of its own, so that its code
is as warm as a user's, who has one of them. (Of GPT-2, whose step takes seconds, all variants share one fit.) CPU time
spent in the hooks of a step, less that of empty hooks, is divided by what the clipping of
``Trainer(gradient_clip_val=1.0)`` took in the step beside it. Around: what acts outside of hooks is compared step for
step, in fits that alternate. One thread; CPU time of the process, logger threads included.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks import machine, peers
from benchmarks.rotation import Rotation, Step, Variant
from benchmarks.workloads import WORKLOADS, Workload
from lightning_gradguard import (
    AdaptiveGradientClipping,
    GradGuard,
    GradientNormMonitor,
    NonFiniteGuard,
    NormClip,
    ValueClip,
    ZClip,
)

NEVER = 10**9
NOTHING = "nothing"
CLIPPING = "`gradient_clip_val=1.0`"
QUIET = "everything on, nothing to clip"
LOGGED = "everything on, every layer written every step"
RECORD = "everything on, a record with norms of weights, as one in 50 is"
CLIPPED = "everything on, every step clipped"
PROBED = "everything on, probes every step"
DEFAULT = "**everything on, as by default**: written and probed every 50 steps"
# Every policy that the package has, by the module it lives in; some only exist with the full set.
POLICIES = {
    "AutoClip()": ("autoclip", "AutoClip", {}),
    "AGC(), unit by unit": ("agc", "AGC", {}),
    "AdaGC()": ("adagc", "AdaGC", {}),
    "MaxClip()": ("maxclip", "MaxClip", {}),
    "QuantileClip()": ("quantile", "QuantileClip", {}),
}

# Rows that a brief run leaves out.
ONE_BY_ONE = ("NormClip", "ValueClip", "ZClip(", "AutoClip", "AdaGC", "MaxClip", "QuantileClip")


def all_variants(incidents: str, brief: bool) -> list[Variant]:
    """What takes turns in hooks, clipping excepted."""
    high = ZClip(z=1e6)  # the operations of ZClip(), and never a clip
    recording = GradGuard(clip=high, on_nonfinite="skip", log_every_n_steps=1, probe_every_n_steps=NEVER)
    guard = {"on_nonfinite": "skip", "log_every_n_steps": NEVER, "probe_every_n_steps": NEVER}
    ours: dict[str, list[Callback]] = {
        "GradientNormMonitor()": [GradientNormMonitor(log_every_n_steps=NEVER, probe_every_n_steps=NEVER)],
        "NonFiniteGuard()": [NonFiniteGuard()],
        "NonFiniteGuard(), incidents armed": [NonFiniteGuard(incident_dir=incidents)],
        "AdaptiveGradientClipping(ZClip()), nothing to clip": [AdaptiveGradientClipping(high)],
        QUIET: [GradGuard(clip=high, **guard)],
        CLIPPED: [GradGuard(clip=ZClip(max_norm=1e-9), **guard)],
        "everything on, incidents armed": [GradGuard(clip=high, incident_dir=incidents, **guard)],
        LOGGED: [GradGuard(clip=high, **{**guard, "log_every_n_steps": 1})],
        RECORD: [_DueForWeights(recording), recording],
        PROBED: [GradGuard(clip=high, **{**guard, "probe_every_n_steps": 1})],
        "NormClip(1.0)": [AdaptiveGradientClipping(NormClip(1.0))],
        "ValueClip(1.0)": [AdaptiveGradientClipping(ValueClip(1.0))],
        'ZClip(by="value"), every step clipped': [AdaptiveGradientClipping(ZClip(max_norm=1e-9, by="value"))],
    }
    for name, (home, kind, options) in POLICIES.items():
        policy = getattr(importlib.import_module(f"lightning_gradguard.clip.{home}"), kind)(**options)
        ours[name] = [AdaptiveGradientClipping(policy)]
    if brief:
        ours = {name: own for name, own in ours.items() if not name.startswith(ONE_BY_ONE)}
    flushed = {LOGGED, RECORD, "`.item()` and `add_scalar` per parameter"}
    callbacks = {NOTHING: [], **ours, **{name: make() for name, make in peers.in_hooks().items()}}
    return [Variant(name, own, flush=_flush if name in flushed else None) for name, own in callbacks.items()]


def in_hooks(
    make: Any, rounds: int, label: str, *, brief: bool, together: bool
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """What each variant adds to the steps of one workload.

    Args:
        make: the workload.
        rounds: steps of each variant.
        label: for the progress bar.
        brief: see :func:`all_variants`.
        together: whether all variants take turns in one fit.
    """
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clipping, again = Variant(CLIPPING, clip=True), Variant(f"{CLIPPING}, again", clip=True)
        variants = [again, *all_variants(folder, brief)]
        nothing = next(variant for variant in variants if variant.name == NOTHING)
        fits = [variants] if together else [[nothing, one] for one in variants if one is not nothing]
        progress = tqdm(desc=label, unit="step", leave=False)
        for own in fits:
            rotation = Rotation(own, clipping, rounds, on_step=progress.update)
            fit(make(), [rotation.first], NEVER, folder)
            names = [variant.name for variant in rotation.variants]
            table |= added(rotation.steps[rotation.num_warm_up :], names)
            gc.collect()  # module and Trainer know each other
        progress.close()
    return {name: table[name] for name in [CLIPPING, *[variant.name for variant in variants]]}


def added(steps: Sequence[Step], names: Sequence[str]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """For each variant: times clipping's cost, and step over the step without it, as median and quartiles."""
    empty = machine.median_and_spread([s.hooks_s for s in steps if s.variant == NOTHING])[0]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    relative: dict[str, list[float]] = {name: [] for name in names}
    for index, step in enumerate(steps):
        own = step.hooks_s - empty
        relative[step.variant].append(step.whole_s / (step.whole_s - own))
        if step.variant != CLIPPING:
            beside = [s.hooks_s - empty for s in steps[max(index - 1, 0) : index + 2] if s.variant == CLIPPING]
            ratios[step.variant].append(own / (sum(beside) / len(beside)))
    ratios[CLIPPING] = [1.0]
    return {
        name: {"clippings": machine.median_and_spread(ratios[name]), "step": machine.median_and_spread(relative[name])}
        for name in names
    }


def with_default(table: dict[str, Any]) -> dict[str, Any]:
    """Adds the mix of steps that a user has: 1 of 50 written, 1 of 50 probed."""
    mixed = {
        what: tuple(
            (48 * quiet + logged + probed) / 50
            for quiet, logged, probed in zip(table[QUIET][what], table[RECORD][what], table[PROBED][what], strict=True)
        )
        for what in ("clippings", "step")
    }
    return {DEFAULT: mixed, **table}


def around(make: Any, steps: int, fits: int, label: str) -> dict[str, tuple[float, float, float]]:
    """Step over plain step, of what cannot be timed in a hook: alternating fits, median CPU time of a step in each."""
    variants: dict[str, Any] = {
        "plain, again": ([], peers._nothing),
        "everything on, in fits of its own": (
            [GradGuard(clip=ZClip(z=1e6), log_every_n_steps=NEVER, probe_every_n_steps=NEVER)],
            peers._nothing,
        ),
        **peers.around_fit(),
    }
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    progress = tqdm(desc=label, unit="fit", leave=False, total=2 * fits * len(variants))
    for _ in range(fits):
        for name, (callbacks, surrounding) in variants.items():
            seconds = []
            for own, around_it in (([], peers._nothing), (callbacks, surrounding)):
                module, clock = make(), StepClock()
                with tempfile.TemporaryDirectory() as folder, around_it(module):
                    fit(module, [*own, clock], steps, folder)
                del module
                gc.collect()  # module and Trainer know each other, and GPT-2 with its optimizer takes 2 GB
                seconds.append(machine.median_and_spread(clock.seconds[2:])[0])
                progress.update()
            ratios[name].append(seconds[1] / seconds[0])
    progress.close()
    return {name: machine.median_and_spread(values) for name, values in ratios.items()}


class _DueForWeights(Callback):
    """Makes the next record one that measures weights, as every fiftieth step does."""

    def __init__(self, guard: GradGuard) -> None:
        self.guard = guard

    def on_before_optimizer_step(self, *args: Any) -> None:
        for pipeline in self.guard._session.pipelines:  # type: ignore[union-attr]
            pipeline.counters.steps = 49


class StepClock(Callback):
    """CPU time from one batch to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        now = time.process_time()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def fit(module: Workload, callbacks: list[Callback], steps: int, folder: str) -> None:
    """Trains on one batch until a callback says stop, or for some steps."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps if steps != NEVER else -1,
        max_epochs=1,
        logger=TensorBoardLogger(folder),
        log_every_n_steps=NEVER,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(range(min(steps, 10**6)), batch_size=1))


def _flush(trainer: pl.Trainer) -> None:
    trainer.logger.experiment.flush()  # type: ignore[union-attr]


def page(values: dict[str, Any]) -> str:
    """All results as Markdown."""
    parts = ["# What watching, clipping and guarding cost", machine.in_words(values["machine"])]
    names = list(values["in_hooks"])
    titles = [f"{WORKLOADS[name][0]}, {values['sizes'][name]}" for name in names]
    for what, title in (
        ("clippings", "CPU time added to a step, in multiples of what `gradient_clip_val=1.0` adds"),
        ("step", "CPU time of a step over that of the same step without"),
    ):
        parts.append(f"## {title}\n\nMedian [quartiles] over steps; each variant takes turns with clipping in one fit.")
        rows = [
            [row, *[_cell(values["in_hooks"][name][row][what], what) for name in names]]
            for row in values["in_hooks"][names[0]]
        ]
        parts.append(machine.markdown_table(["", *titles], rows))
    if values["around"]:
        parts.append("## Step over plain step, fits alternating\n\nMedian [quartiles] over pairs of fits.")
        around_names = list(values["around"])
        titles = [WORKLOADS[name][0] for name in around_names]
        rows = [
            [row, *[_cell(values["around"][name][row], "step") for name in around_names]]
            for row in values["around"][around_names[0]]
        ]
        parts.append(machine.markdown_table(["", *titles], rows))
    return "\n\n".join(parts)


def _cell(value: tuple[float, float, float], what: str) -> str:
    middle, low, high = value
    digits = 2 if what == "clippings" or middle > 1.3 else 3
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=15, help="steps of each variant")
    parser.add_argument("--quick", action="store_true", help="a minute: two workloads, few rounds")
    parser.add_argument("--brief", action="store_true", help="leave out the policies one by one")
    parser.add_argument("--no-around", action="store_true", help="leave out what needs fits of its own")
    machine.add_record_option(parser, "overhead")
    options = parser.parse_args(argv)
    if options.quick:
        options.workloads, options.rounds = ["cnn20", "lstm"], 5
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="lightning")
    results: dict[str, Any] = {"machine": machine.describe(), "sizes": {}, "in_hooks": {}, "around": {}}
    for name in options.workloads:
        title, make = WORKLOADS[name]
        params = list(make().parameters())
        results["sizes"][name] = f"{len(params):,} tensors, {sum(p.numel() for p in params) / 1e6:.2f} M"
        rounds = max(options.rounds // 2, 2) if name == "gpt" else options.rounds  # a step there takes seconds
        table = in_hooks(make, rounds, f"{title}, in hooks", brief=options.brief, together=name == "gpt")
        results["in_hooks"][name] = with_default(table)
        gc.collect()
        if not options.no_around:
            steps, fits = (6, 1) if options.quick else (8, 2) if name == "gpt" else (10, 3)
            results["around"][name] = around(make, steps, fits, f"{title}, around")
        machine.save(options.name, results, page(results), record=options.record)  # after each, lest a long run is lost
    print(page(results))


if __name__ == "__main__":
    main()
