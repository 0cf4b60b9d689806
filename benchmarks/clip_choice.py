"""Is the clip that ``gradguard whatif`` recommends as good as the best one? Judged over seeds, on the studies.

    python -m benchmarks.clip_choice [--seeds 5] [--cases B C L calm hot slow vanishing] [--record]

Each case is trained without clipping; what its norms suggest is applied to the same seed, and the metric compared with
that of the best policy: of those that the study has recorded, or of those that are tried here.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks import machine
from lightning_gradguard import (
    AGC,
    AdaptiveGradientClipping,
    ClipPolicy,
    GradientNormMonitor,
    MemorySink,
    NormClip,
    StepRecord,
    ZClip,
)
from lightning_gradguard.hindsight.advice import Advice, advise
from lightning_gradguard.hindsight.notation import read_policy, written
from lightning_gradguard.hindsight.series import series_by_optimizer

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import bad_batches  # noqa: E402
import gan  # noqa: E402
import lstm_language_model as lstm  # noqa: E402
from harness import data  # noqa: E402
from harness.mlp import MLP  # noqa: E402

Fit = tuple[L.LightningModule, Any, Any, int]


@dataclass(frozen=True)
class Case:
    """A training that is run without clipping, and with.

    Attributes:
        words: what it is.
        metric: its name in the Trainer's metrics.
        larger: whether larger is better.
        make: module, training and validation batches, and epochs.
        study: whose recorded results have its policies; ``None`` for a case that is tried here.
    """

    words: str
    metric: str
    larger: bool
    make: Callable[[], Fit]
    study: str | None = None


def language_model(lr: float, epochs: int) -> Fit:
    text = data.text(None)
    loaders = lstm.sequences(text.train, 32, 50), lstm.sequences(text.val, 32, 50)
    return lstm.LanguageModel(len(text.symbols), lr=lr), *loaders, epochs


def drawing() -> Fit:
    images = data.images(None).centered()
    train = data.batches(images.train_x, size=64, shuffle=True, drop_last=True)
    return gan.GAN(images, gan.Quality(images)), train, data.batches(images.test_x, size=len(images.test_x)), 71


def digits(factor: float = 1.0, shrunk: float = 1.0, epochs: int = 20, **settings: Any) -> Fit:
    """Seven layers on handwritten digits; one batch in 50 is ``factor`` times, one layer ``shrunk`` times as large."""
    images = data.images(None).standardized()
    loader = data.batches(images.train_x, images.train_y, size=64, shuffle=True, drop_last=True)
    module = MLP(images.num_pixels, depth=5, **settings)
    with torch.no_grad():
        module.get_submodule("hidden.2.linear").weight.mul_(shrunk)
    bad = bad_batches.WithBadBatches(loader, every=50, factor=factor)
    return module, bad, data.batches(images.test_x, images.test_y, size=1000), epochs


def usual(factor: float) -> Fit:
    return digits(factor, init="he", lr=0.05, momentum=0.9)


BITS, FRECHET, ACCURACY = "val/bits_per_character", "quality/frechet", "test/accuracy"
CASES = {
    "B": Case("language model, SGD 20: explodes", BITS, False, lambda: language_model(20.0, 2), "lstm_language_model"),
    "C": Case("GAN, SGD 0.4 for both", FRECHET, False, drawing, "gan"),
    "L": Case("one batch in 50 is 255 times too large", ACCURACY, True, lambda: usual(255.0), "bad_batches"),
    "calm": Case("the same digits, no bad batch", ACCURACY, True, lambda: usual(1.0)),
    # What stands before a batch norm has the larger a gradient the smaller its weights are.
    "hot": Case(
        "the digits, one layer begins 100 times too small before a batch norm, 8 epochs",
        ACCURACY,
        True,
        lambda: digits(shrunk=0.01, epochs=8, init="he", norm=True, lr=0.05),
    ),
    "vanishing": Case(
        "the digits, five sigmoid layers: vanishing gradients",
        ACCURACY,
        True,
        lambda: digits(activation="sigmoid", lr=0.05, momentum=0.9),
    ),
    "slow": Case("the language model, SGD 2", BITS, False, lambda: language_model(2.0, 2)),
}


class _StopWhenNotFinite(L.Callback):
    """Ends a run whose loss is not finite: it will not come back."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        trainer.should_stop = trainer.should_stop or not bool(torch.isfinite(loss))


def train(
    case: Case, seed: int, policies: ClipPolicy | Mapping[int, ClipPolicy | None] | None
) -> tuple[float, list[StepRecord]]:
    """Trains once; returns the metric, NaN for a run that ended early, and the records."""
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    module, batches, held_out, epochs = case.make()
    memory = MemorySink(max_records=100_000)
    trainer = L.Trainer(
        callbacks=[
            *([AdaptiveGradientClipping(policies)] if policies else []),
            GradientNormMonitor(sinks=[memory], keep_records=False, verbose=False),
            _StopWhenNotFinite(),
        ],
        max_epochs=epochs, accelerator="cpu", log_every_n_steps=50, check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, logger=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, batches, held_out)
    found = trainer.callback_metrics.get(case.metric)
    return math.nan if found is None else float(found), memory.records


def advice_of(records: Sequence[StepRecord]) -> dict[int, Advice]:
    """What the norms of an unclipped run ask for, by optimizer."""
    by_optimizer = series_by_optimizer(records)
    return {i: advise(s, [r for r in records if r.optimizer == i]) for i, s in by_optimizer.items()}


def apply(case: Case, seed: int, advice: Mapping[int, Advice], unclipped: float) -> float:
    """The metric of the same seed with what was recommended; no clip is the run that there is."""
    policies = {i: None if a.policy is None else read_policy(a.policy) for i, a in advice.items()}
    return unclipped if not any(policies.values()) else train(case, seed, policies)[0]


def best_policy(case: Case, seeds: int) -> tuple[str, list[float]]:
    """The policy with the best mean, and its metrics: of the study's, or of those that are tried here."""
    found: dict[str, list[float]] = {}
    if case.study is not None:
        recorded = json.loads((ROOT / "examples" / "results" / f"{case.study}.json").read_text(encoding="utf-8"))
        for run in recorded["runs"]:
            if run["variant"] not in ("none", "no clipping", "no bad batches"):
                found.setdefault(run["variant"], []).append(float(run["metrics"][case.metric]))
    else:
        for policy in (NormClip(1.0), ZClip(), AGC()):
            found[written(policy)] = [train(case, seed, policy)[0] for seed in range(seeds)]
    found = {name: values for name, values in found.items() if all(map(math.isfinite, values))}
    pick = max if case.larger else min
    return pick(found.items(), key=lambda entry: statistics.fmean(entry[1]))


def judge(name: str, seeds: int) -> dict[str, Any]:
    """One case, over seeds."""
    case = CASES[name]
    unclipped, applied, advised = [], [], []
    for seed in range(seeds):
        metric, records = train(case, seed, None)
        advice = advice_of(records)
        unclipped.append(metric)
        advised.append(" / ".join(a.policy or "no clipping" for a in advice.values()))
        applied.append(apply(case, seed, advice, metric))
        print(name, seed, advised[-1], metric, applied[-1], file=sys.stderr, flush=True)
    best, values = best_policy(case, seeds)
    worse = statistics.fmean(applied) - statistics.fmean(values)
    worse = -worse if case.larger else worse
    return {
        "case": f"{name}: {case.words}",
        "metric": case.metric,
        "advised": advised,
        "unclipped": unclipped,
        "applied": applied,
        "best": best,
        "best_values": values,
        "within": worse <= (statistics.stdev(values) if len(values) > 1 else 0.0),
    }


def page(found: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> str:
    """The table, as Markdown."""
    head = ["case", "recommended, seed by seed", "without", "recommended", "best policy", "within its spread"]
    rows = []
    for row in found:
        best = f"{row['best']}: {_mean(row['best_values'])}"
        advised = ", ".join(f"{n} × {a}" for a, n in Counter(row["advised"]).items())
        rows.append(
            [
                row["case"],
                advised,
                _mean(row["unclipped"]),
                _mean(row["applied"]),
                best,
                "yes" if row["within"] else "no",
            ]
        )
    title = "# Is the recommended clip as good as the best one?"
    note = "Mean ± standard deviation over seeds; less bits and less distance are better. NaN: ended early."
    return "\n\n".join([title, machine.in_words(dict(described)), note, machine.markdown_table(head, rows)])


def _mean(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    lost = len(values) - len(finite)
    if not finite:
        return "NaN"
    spread = f" ± {statistics.stdev(finite):.3f}" if len(finite) > 1 else ""
    return f"{statistics.fmean(finite):.3f}{spread}" + (f", {lost} NaN" if lost else "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    machine.add_record_option(parser, "clip_choice")
    options = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    described = machine.describe()
    found = [judge(name, options.seeds) for name in options.cases]
    text = page(found, described)
    machine.save(options.name, {"machine": described, "cases": found}, text, record=options.record)
    print(text)


if __name__ == "__main__":
    main()
