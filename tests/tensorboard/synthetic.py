"""Runs made of records alone, with known spikes, holes and depth profiles, for the tests of what is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import nn

from lightning_gradguard import GradientPipeline
from lightning_gradguard.record import Finding, StepRecord
from lightning_gradguard.sinks import MemorySink
from lightning_gradguard.tensorboard.sink import TensorBoardSink

FOREIGN_TIME = 1.0  # when everything that is not ours was written: that time is in no list of runs
VANISHING = Finding(
    rule="vanishing-over-depth",
    severity="critical",
    message="The gradient falls by 0.8 decades a layer towards the input (R² 0.99); 'blocks.0' gets 1e-12 of it.",
    step=40,
    layers=("blocks.0", "blocks.1", "blocks.2"),
    evidence={"decades_per_layer": -0.8, "r2": 0.99},
    causes=("saturating activation with a bad scale", "no normalization"),
    remedies=("initialize for the activation (Xavier for tanh)", "add normalization", "use residual connections"),
    count=12,
)


def transformer_layers(blocks: int) -> tuple[str, ...]:
    """Names of a small transformer, by parameter."""
    parts = ("attention.qkv.weight", "attention.out.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    inner = tuple(f"encoder.layer.{i}.{part}" for i in range(blocks) for part in parts)
    return ("embed.weight", *inner, "head.weight")


def make_record(step: int, layers: tuple[str, ...], norms: np.ndarray, **changes: object) -> StepRecord:
    """A quiet record; ``changes`` replace what is special about it."""
    values = tuple(None if math.isnan(norm) and "cause" not in changes else float(norm) for norm in norms)
    total = math.hypot(*norms[np.isfinite(norms)])
    finite = tuple(None if value is None or not math.isfinite(value) else value for value in values)
    fields: dict[str, object] = {
        "step": step,
        "optimizer": 0,
        "num_optimizers": 1,
        "layers": layers,
        "layer_norms": values,
        "total_norm": total,
        "post_clip_norm": total,
        "threshold": None,
        "coefficient": None,
        "cosine": None,
        "verdict": "ok",
        "nonfinite_layers": (),
        "cause": None,
        "loss_scale": None,
        "num_steps": 10,
        "num_clipped": 0,
        "num_nonfinite": 0,
        "max_layer_norms": finite,
        "max_total_norm": total,
        "min_coefficient": None,
        "clip_rate": None,
        "nonfinite_total": 0,
        "skipped_total": 0,
    }
    return StepRecord(**(fields | changes))  # type: ignore[arg-type]


def busy_run(num_records: int = 300, blocks: int = 6, seed: int = 0, every: int = 10) -> Iterator[StepRecord]:
    """Clipping at 1.0, five spikes, one NaN step, a layer that is zero for a while and one without gradient."""
    random = np.random.default_rng(seed)
    layers = transformer_layers(blocks)
    base = 10 ** random.normal(-1.2, 0.3, len(layers))
    weights = 10 ** random.normal(0.7, 0.2, len(layers))
    spikes = {int(num_records * share): 10 ** random.uniform(1.2, 2.0) for share in (0.2, 0.34, 0.5, 0.77, 0.9)}
    nan_at = int(num_records * 0.62)
    clipped = nonfinite = 0
    for i in range(num_records):
        decay = 10 ** (0.5 * math.exp(-i / 40) - 0.5 * i / num_records)
        norms = base * decay * 10 ** random.normal(0, 0.12, len(layers))
        if i in spikes:
            start = int(random.integers(0, len(layers) // 2))
            norms[start:] *= spikes[i] * np.geomspace(1, 0.3, len(layers) - start)
        if 0.3 < i / num_records < 0.4:
            norms[5] = 0.0
        if i / num_records > 0.8:
            norms[1] = math.nan  # no gradient
        total = float(np.sqrt(np.square(np.nan_to_num(norms)).sum()))
        coefficient = min(1.0, 1.0 / total)
        clipped += coefficient < 1.0
        changes: dict[str, object] = {
            "threshold": 1.0,
            "coefficient": coefficient,
            "min_coefficient": coefficient,
            "post_clip_norm": total * coefficient,
            "cosine": 1.0,
            "verdict": "clipped" if coefficient < 1 else "ok",
            "num_steps": every,
            "num_clipped": int(every * 0.6) if coefficient < 1 else 0,
            "clip_rate": clipped / (i + 1),
            "weight_norms": tuple(weights),
            "update_ratios": tuple(1e-3 * 10 ** random.normal(0, 0.2, len(layers))),
            "layer_shapes": tuple("64×64" for _ in layers),
            "nonfinite_total": nonfinite,
            "skipped_total": nonfinite,
        }
        if i == nan_at:
            nonfinite += 1
            bad = layers[8:16]
            norms[8:16] = math.nan
            changes |= {
                "verdict": "skipped",
                "cause": "nan",
                "nonfinite_layers": bad,
                "total_norm": math.nan,
                "post_clip_norm": None,
                "num_nonfinite": 1,
                "nonfinite_total": nonfinite,
                "skipped_total": nonfinite,
                "num_clipped": 0,
            }
            values = tuple(float(norm) for norm in norms)
            finite = tuple(value if math.isfinite(value) else None for value in values)
            changes |= {"layer_norms": values, "max_layer_norms": finite}
        yield make_record(i * every, layers, norms, **changes)


def vanishing_run(num_records: int = 120, depth: int = 16, seed: int = 1) -> Iterator[StepRecord]:
    """A stack whose gradient falls by 0.8 decades a layer towards the input, and the rule that says so."""
    random = np.random.default_rng(seed)
    layers = tuple(f"blocks.{i}" for i in range(depth))
    profile = 10 ** (-0.8 * np.arange(depth)[::-1])
    for i in range(num_records):
        norms = profile * 10 ** random.normal(0, 0.15, depth)
        findings = (VANISHING,) if i >= 4 else ()
        yield make_record(i * 10, layers, norms, weight_norms=(4.0,) * depth, findings=findings)


def steady_run(num_records: int = 120, depth: int = 16, seed: int = 2) -> Iterator[StepRecord]:
    """The same stack with residual connections: flat over depth, nothing to report."""
    random = np.random.default_rng(seed)
    layers = tuple(f"blocks.{i}" for i in range(depth))
    for i in range(num_records):
        norms = 0.1 * 10 ** random.normal(0, 0.1, depth) * (1 + 2 * math.exp(-i / 20))
        yield make_record(i * 10, layers, norms, weight_norms=(4.0,) * depth)


def gan_run(num_records: int = 60) -> Iterator[StepRecord]:
    """Two optimizers in turn, with layers of their own."""
    random = np.random.default_rng(3)
    for i in range(num_records):
        for optimizer, name in enumerate(("generator", "discriminator")):
            layers = tuple(f"{name}.{j}" for j in range(5))
            norms = 10 ** random.normal(-1 + optimizer, 0.2, 5)
            yield make_record(i * 10, layers, norms, optimizer=optimizer, num_optimizers=2)


def only_nan_run(num_records: int = 20) -> Iterator[StepRecord]:
    """No step of it was finite."""
    layers = ("stem", "body", "head")
    bad = {"cause": "nan", "verdict": "skipped", "nonfinite_layers": layers, "total_norm": math.nan, "loss": math.nan}
    for i in range(num_records):
        yield make_record(i * 10, layers, np.full(3, math.nan), **bad)


@dataclass(frozen=True)
class ClearedFinding(Finding):
    """A finding that did not hold any more at some step."""

    until: int | None = None


@dataclass(frozen=True)
class SampledRecord(StepRecord):
    """A record between two logged steps."""

    early: bool = False


def cleared_run(num_records: int = 40) -> Iterator[StepRecord]:
    """A finding that is raised at step 50 and clears at step 200."""
    raised = ClearedFinding(**{field.name: getattr(VANISHING, field.name) for field in fields(VANISHING)})
    news = {5: (raised,), 20: (replace(raised, until=200),)}
    for i, record in enumerate(steady_run(num_records=num_records)):
        yield replace(record, findings=news.get(i, ()))


def sampled_run(num_records: int = 30) -> Iterator[StepRecord]:
    """Updates measured at every fifth record, two early records, kinds of modules, layers registered out of order."""
    random = np.random.default_rng(6)
    layers, kinds = ("net.head", "net.stem", "net.norm"), ("Linear", "Conv2d", "LayerNorm")
    for i in range(num_records):
        norms = 10 ** random.normal(-1, 0.1, 3)
        updates = tuple(1e-3 * norms) if i % 5 == 0 else None
        changes = {"weight_norms": (1.0,) * 3, "update_ratios": updates, "loss": 2.0 * 0.97**i, "depth": (2, 0, 1)}
        record = make_record(i * 10, layers, norms, layer_kinds=kinds, **changes)
        yield SampledRecord(**{f.name: getattr(record, f.name) for f in fields(record)} | {"early": i in (1, 2)})


def gappy_run(num_records: int = 40) -> Iterator[StepRecord]:
    """A good step alone between bad ones: no two points of a curve are neighbours."""
    for i, record in enumerate(steady_run(num_records=num_records)):
        loss = 1.0 + i / num_records if i % 2 else math.nan
        yield replace(record, loss=loss)


def trained_run(name: str, steps: int = 60) -> Iterator[StepRecord]:
    """A stack of twelve layers that really trains: two that are healthy, and two that are sick over depth.

    ``plain`` has He's initialization, ``normalized`` layer norms, ``sigmoid`` saturates, ``unscaled`` has weights that
    are far too small.
    """
    torch.manual_seed(0)
    act = {"sigmoid": nn.Sigmoid, "unscaled": nn.Tanh}.get(name, nn.ReLU)
    blocks = [nn.Sequential(nn.Linear(24, 24), *[nn.LayerNorm(24)] * (name == "normalized"), act()) for _ in range(11)]
    net = nn.Sequential(*blocks, nn.Linear(24, 2))
    for module in net.modules():
        if isinstance(module, nn.Linear) and name in ("plain", "normalized"):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.Linear) and name == "unscaled":
            nn.init.normal_(module.weight, std=0.05)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    sink = MemorySink()
    pipeline = GradientPipeline(net, optimizer, sinks=[sink], log_every_n_steps=2)
    inputs = torch.randn(32, 24)
    labels = (inputs[:, :3].sum(1) > 0).long()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        pipeline.before_step()
        optimizer.step()
    yield from sink.records


def large_run(num_layers: int, num_records: int, every: int = 50) -> Iterator[StepRecord]:
    """Many layers and many records; each record costs a few milliseconds to make."""
    random = np.random.default_rng(4)
    layers = tuple(f"model.layers.{i // 8}.part{i % 8}.weight" for i in range(num_layers))
    base = 10 ** random.normal(-2, 0.5, num_layers)
    weights = tuple((10 ** random.normal(0.5, 0.2, num_layers)).tolist())
    for i in range(num_records):
        norms = base * 10 ** (random.normal(0, 0.15, num_layers) + random.normal(0, 0.1))
        if i in (num_records // 3, num_records // 2):
            norms *= 80
        yield make_record(i * every, layers, norms, weight_norms=weights, num_steps=every)


def write_run(folder: Path, records: Iterator[StepRecord]) -> None:
    """Writes records as a run of their own."""
    sink = TensorBoardSink(folder)
    for record in records:
        sink.write(record)
    sink.close()


def write_foreign(folder: Path, values: Sequence[tuple[str, bytes | dict[str, object], TensorProto]]) -> None:
    """Writes a run that holds something else under our plugin's name: tags, what stands beside each, and a tensor."""
    summary = Summary()
    for tag, content, tensor in values:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="gradguard", content=content))
        metadata.data_class = DATA_CLASS_TENSOR
        summary.value.append(Summary.Value(tag=tag, metadata=metadata, tensor=tensor))
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=1, wall_time=FOREIGN_TIME, summary=summary))
    writer.close()


def with_every_norm(records: Iterable[StepRecord], seed: int = 0) -> Iterator[StepRecord]:
    """The same records with the total norm of each of their steps, one in a hundred of them ten times too large."""
    random = np.random.default_rng(seed)
    for record in records:
        norms = record.total_norm * random.uniform(0.9, 1.1, record.num_steps)
        norms[random.random(record.num_steps) < 0.01] *= 10.0
        yield replace(record, total_norms=tuple(norms.tolist()), max_total_norm=float(norms.max()))
