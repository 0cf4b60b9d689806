"""What a user writes: every public name once, trained for real, and clean under ``mypy --strict``.

Run by ``test_distribution.py`` in an environment that has the wheel only, in a folder of its own.
"""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_gradguard
from lightning_gradguard import (
    AGC,
    AdaGC,
    AdaptiveGradientClipping,
    AutoClip,
    Chain,
    Clip,
    ClipPolicy,
    ConsoleSink,
    Diagnosis,
    Finding,
    GradGuard,
    GradientNormMonitor,
    GradientPipeline,
    Instruments,
    JsonlSink,
    Layout,
    MaxClip,
    Measurement,
    MemorySink,
    NonFiniteGradientError,
    NonFiniteGuard,
    NormClip,
    QuantileClip,
    ReplayReport,
    Rule,
    Run,
    Sink,
    SpikeRule,
    StepRecord,
    TemporalProbe,
    TensorBoardSink,
    ValueClip,
    WhatIf,
    ZClip,
    default_rules,
    measure,
    read_jsonl,
    read_run,
    replay,
    whatif,
)


class Numbers(Dataset[Tensor]):
    """Forty rows; one of them is NaN."""

    def __init__(self) -> None:
        self.rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        self.rows[21] = float("nan")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class Regression(LightningModule):
    """A small model as users have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        outputs: Tensor = self.net(batch)
        return (outputs - batch.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Halve(ClipPolicy):
    """A policy of the user's own."""

    def init_state(self, layout: Layout, device: torch.device) -> dict[str, Tensor]:
        return {}

    def decide(self, measurement: Measurement, state: dict[str, Tensor]) -> Clip:
        return Clip(threshold=measurement.total, coefficient=torch.full_like(measurement.total, 0.5))


class Large(Rule):
    """A rule of the user's own."""

    id = "large"
    patience = 1

    def observe(self, record: StepRecord) -> Finding | None:
        if record.total_norm < 0.0:
            return None
        return Finding(rule=self.id, severity="info", message="there is a norm", step=record.step)


class Count(Sink):
    """A sink of the user's own."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, record: StepRecord) -> None:
        self.steps.append(record.step)


def fit(*callbacks: GradGuard | GradientNormMonitor | AdaptiveGradientClipping | NonFiniteGuard) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[*callbacks],
        logger=TensorBoardLogger("runs", name="regression"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Regression(), DataLoader(Numbers(), batch_size=4))


def with_a_trainer() -> ReplayReport:
    guard = GradGuard(clip=ZClip(z=3.0), on_nonfinite="skip", incident_dir="incidents")
    fit(guard)
    assert [record.verdict for record in guard.records].count("skipped") == 1
    sinks: list[Sink] = [JsonlSink("runs/gradients.jsonl"), MemorySink(), ConsoleSink(), Count()]
    fit(
        GradientNormMonitor(rules=[Large(), *default_rules()], sinks=sinks),
        AdaptiveGradientClipping({0: Chain([AGC(), NormClip(1.0)])}),
        NonFiniteGuard("rollback", spikes=SpikeRule()),
    )
    (bundle,) = Path("incidents").glob("step-*")
    return replay(bundle, Regression())


def without_a_trainer(policy: ClipPolicy) -> tuple[Finding, ...]:
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments, probe = Instruments(model.net), TemporalProbe(nn.GRU(3, 5))
    sink = TensorBoardSink(f"runs/{type(policy).__name__}")
    pipeline = GradientPipeline(
        model, optimizer, clip=policy, on_nonfinite="raise", sinks=[sink], log_every_n_steps=1, instruments=instruments
    )
    diagnosis = Diagnosis([Large()])
    found: list[Finding] = []
    for step in range(3):
        instruments.before_forward(step)
        loss = model.training_step(torch.ones(4, 4), step)
        instruments.after_forward(loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        total: Tensor = measure(Layout.from_optimizer(model, optimizer)).total
        record = pipeline.before_step(step=step)
        assert record is not None and abs(float(total) - record.total_norm) < 1e-6
        optimizer.step()
        pipeline.after_step()
        found += diagnosis.observe(record)
    sink.close()
    return (*found, *([] if probe.take() is None else [found[0]]))


def main() -> None:
    report = with_a_trainer()
    assert report.reproduced and report.exact
    records: list[StepRecord] = list(read_jsonl("runs/gradients.jsonl"))
    run: Run = read_run("runs/gradients.jsonl")
    lines = [record.to_json() for record in records]  # NaN, which one step's norm is, equals nothing
    assert len(records) == 10 and [record.to_json() for record in run.records] == lines
    assert "large" in [finding.rule for finding in run.findings]
    table: WhatIf = whatif(run.records, [AutoClip(percentile=90.0), "NormClip(0.5)"])
    assert table.rows()[-1]["policy"] == "NormClip(max_norm=0.5)"
    for policy in (AdaGC(), AutoClip(), MaxClip(), QuantileClip(), ValueClip(1.0), Halve()):
        assert [finding.rule for finding in without_a_trainer(policy)] == ["large"]
    try:
        fit(GradGuard(on_nonfinite="raise"))
    except NonFiniteGradientError as error:
        print(f"version {lightning_gradguard.__version__}, {lightning_gradguard.__file__}: {error}")


if __name__ == "__main__":
    main()
