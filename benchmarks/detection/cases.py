"""The runs: architectures that train well, one injected fault each, and awkward but healthy ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .setup import Setup

# Each of these trains well; see the share of healthy runs that do in the report.
HEALTHY = {
    "mlp": Setup("mlp", depth=8, lr=0.02),
    "cnn": Setup("cnn", depth=20, width=8, norm=True, lr=0.05),
    "rescnn": Setup("rescnn", depth=12, width=8, norm=True, residual=True, lr=0.05),
    "lstm": Setup("lstm", width=48, init="default", optimizer="adam", lr=1e-2, clip=1.0, batch_size=16),
    "gru": Setup("gru", width=32, init="default", optimizer="adam", lr=1e-2, clip=1.0),
    "rnn": Setup("rnn", width=32, init="default", recurrent_scale=1.0, optimizer="adam", lr=3e-3, clip=1.0),
    "transformer": Setup(
        "transformer", depth=3, width=32, init="xavier", norm=True, activation="gelu", optimizer="adamw", lr=3e-3,
        weight_decay=0.01, batch_size=16,
    ),
    "gan": Setup("gan", init="xavier", optimizer="adam", lr=1e-3, steps=100),
    "autoencoder": Setup("autoencoder", width=32, optimizer="adam", lr=3e-3),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run: what was injected, and on which architecture; ``fault`` is ``None`` for a healthy one."""

    name: str
    fault: str | None
    setup: Setup
    healthy: Setup | None = None  # the same without the fault


@dataclass(frozen=True)
class Fault:
    """A mistake people make, as a change of the set-up, by architecture."""

    name: str
    on: dict[str, Callable[[Setup], Setup]]


def _with(**changes: object) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, **changes)  # type: ignore[arg-type]


def _all(change: Callable[[Setup], Setup], *architectures: str) -> dict[str, Callable[[Setup], Setup]]:
    return dict.fromkeys(architectures, change)


EVERYWHERE = ("mlp", "cnn", "rescnn", "lstm", "gru", "rnn", "transformer", "autoencoder")

FAULTS = [
    Fault(
        "saturated activation",
        {
            "mlp": _with(activation="tanh", init="xavier", init_scale=8.0),
            "cnn": _with(activation="tanh", norm=False, init="xavier", init_scale=8.0),
            "autoencoder": _with(activation="tanh", init="xavier", init_scale=8.0),
            "rnn": _with(recurrent_scale=12.0, init_scale=6.0),
        },
    ),
    Fault(
        "initial scale too large",
        {
            "mlp": _with(init_scale=2.5),
            "cnn": _with(norm=False, init_scale=2.0),
            "rescnn": _with(norm=False, init_scale=2.0),
            "autoencoder": _with(init_scale=3.0),
            "transformer": _with(norm=False, init_scale=4.0),
        },
    ),
    Fault(
        "initial scale too small",
        {
            "mlp": _with(init="normal"),
            "cnn": _with(init="normal", norm=False),
            "autoencoder": _with(init="normal", optimizer="sgd", lr=0.05),
            "gru": _with(init="normal", init_scale=0.01, optimizer="sgd", lr=0.1),
        },
    ),
    Fault("zero initialization", _all(_with(init="zero"), "mlp", "cnn", "autoencoder", "lstm", "gru", "transformer")),
    Fault(
        "learning rate too high",
        {
            "mlp": _with(lr=2.0),
            "cnn": _with(lr=20.0),
            "rescnn": _with(lr=20.0),
            "lstm": _with(lr=1.0),
            "gru": _with(lr=1.0),
            "rnn": _with(lr=1.0),
            "transformer": _with(lr=0.5),
            "autoencoder": _with(lr=0.5),
        },
    ),
    Fault(
        "learning rate too low",
        {a: (lambda s: replace(s, lr=s.lr * 1e-4)) for a in EVERYWHERE},
    ),
    Fault(
        "missing normalization",
        {
            "mlp": _with(init="default", depth=16),
            "cnn": _with(norm=False, init="default"),
            "rescnn": _with(norm=False, init="he", depth=30, lr=0.05),
            "transformer": _with(norm=False, depth=10, optimizer="sgd", lr=0.1),
        },
    ),
    Fault(
        "input not normalized",
        {a: _with(input_scale=255.0) for a in ("mlp", "rescnn", "gru", "autoencoder")}
        | {"rescnn": _with(input_scale=255.0, norm=False, depth=8), "rnn": _with(input_scale=255.0)},
    ),
    Fault(
        "dead units by bias",
        {
            "mlp": _with(bias=-8.0),
            "cnn": _with(bias=-8.0),
            "rescnn": _with(bias=-8.0),
            "autoencoder": _with(bias=-8.0),
            "transformer": _with(bias=-12.0),
        },
    ),
    Fault(
        "frozen by mistake",
        {
            "mlp": _with(frozen=("blocks.3.",)),
            "cnn": _with(frozen=("blocks.9.",)),
            "rescnn": _with(frozen=("blocks.5.",)),
            "lstm": _with(frozen=("rnn.",)),
            "gru": _with(frozen=("rnn.",)),
            "rnn": _with(frozen=("rnn.",)),
            "transformer": _with(frozen=("blocks.1.",)),
            "autoencoder": _with(frozen=("blocks.3.",)),
        },
    ),
    Fault(
        "detached branch",
        {
            "mlp": _with(detach_at=3),
            "cnn": _with(detach_at=9),
            "rescnn": _with(detach_at=5),
            "lstm": _with(detach_at=0),
            "gru": _with(detach_at=0),
            "rnn": _with(detach_at=0),
            "transformer": _with(detach_at=1),
            "autoencoder": _with(detach_at=3),
        },
    ),
    Fault("wrong sign of the loss", _all(_with(sign=-1.0), *EVERYWHERE)),
    Fault(
        "exploding recurrence",
        {"rnn": _with(recurrent_scale=1.6, activation="relu", clip=None, optimizer="sgd", lr=0.05, extra="relu-rnn")},
    ),
    Fault("vanishing recurrence", {"rnn": _with(recurrent_scale=0.1), "gru": _with(recurrent_scale=0.0, init_scale=0.1)}),
    Fault(
        "fp16 underflow",
        {
            "mlp": _with(dtype="float16", loss_scale=1e-5, optimizer="adam", lr=3e-3),
            "cnn": _with(dtype="float16", loss_scale=1e-5, optimizer="adam", lr=3e-3),
            "transformer": _with(dtype="float16", loss_scale=1e-5),
            "autoencoder": _with(dtype="float16", loss_scale=1e-4),
        },
    ),
    Fault("clipping ceiling too low", _all(_with(clip=1e-4), "mlp", "cnn", "rescnn")),
    Fault(
        "optimizers out of balance",
        {"gan": _with(lr_second=0.1), "gan weak critic": _with(lr_second=1e-6)},
    ),
]  # fmt: skip


def sick_cases() -> list[Case]:
    """Every fault on every architecture that can have it."""
    cases = []
    for fault in FAULTS:
        for where, change in fault.on.items():
            healthy = HEALTHY[where.split()[0]]
            cases.append(Case(f"{where}: {fault.name}", fault.name, change(healthy), healthy))
    return cases


def healthy_cases() -> list[Case]:
    """The architectures as they should be, and runs that look odd but are well."""
    mlp, cnn, res, lstm, gru, rnn, former, gan, auto = HEALTHY.values()
    awkward = {
        "mlp, tanh and Xavier": replace(mlp, activation="tanh", init="xavier"),
        "mlp, SiLU": replace(mlp, activation="silu", lr=0.05),
        "mlp, sigmoid with batch norm": replace(mlp, activation="sigmoid", init="xavier", norm=True, depth=5, lr=0.1),
        "mlp, dropout": replace(mlp, extra="dropout", depth=3),
        "mlp, Adam": replace(mlp, optimizer="adam", lr=3e-3),
        "mlp, RMSprop": replace(mlp, optimizer="rmsprop", lr=1e-3),
        "mlp, shallow, default init": replace(mlp, depth=2, init="default", lr=0.1),
        "mlp, residual": replace(mlp, residual=True, init="default", lr=0.05, depth=12),
        "mlp, warm-up": replace(mlp, schedule="warmup", optimizer="adam", lr=3e-3),
        "mlp, cosine to zero": replace(mlp, schedule="cosine", lr=0.05),
        "mlp, restarts": replace(mlp, schedule="restarts", lr=0.05),
        "mlp, steps of the rate": replace(mlp, schedule="step", lr=0.05),
        "mlp, frozen early layers": replace(mlp, frozen=("blocks.0.", "blocks.1.", "blocks.2.", "blocks.3.")),
        "mlp, only the head trains": replace(mlp, frozen=("blocks.",), width=128, depth=2, lr=0.1),
        "mlp, low-rank adapters": replace(mlp, extra="low-rank", optimizer="adam", lr=1e-2),
        "mlp, sparse activity": replace(mlp, extra="sparse-activity", depth=3, width=64),
        "mlp, large weight decay": replace(mlp, optimizer="adamw", lr=3e-3, weight_decay=1.0),
        "mlp, label noise": replace(mlp, extra="label-noise"),
        "mlp, batch of four": replace(mlp, batch_size=4, lr=0.005),
        "mlp, tiny loss factor": replace(mlp, optimizer="adam", lr=3e-3, loss_scale=1e-4),
        "mlp, large loss factor": replace(mlp, optimizer="adam", lr=3e-3, loss_scale=1e3),
        "mlp, bfloat16": replace(mlp, dtype="bfloat16", optimizer="adam", lr=3e-3),
        "mlp, float16 with scaler": replace(mlp, dtype="float16", scaler=True, optimizer="adam", lr=3e-3),
        "mlp, AutoClip": replace(mlp, adaptive=True),
        "mlp, clipped on most steps": replace(mlp, clip=0.5, lr=0.1),
        "cnn, default init with batch norm": replace(cnn, init="default"),
        "cnn, sigmoid with batch norm": replace(cnn, activation="sigmoid", init="xavier", depth=8, lr=0.1),
        "cnn, frozen batch norm": replace(
            cnn, frozen=tuple(f"blocks.{i}.1." for i in range(18)), optimizer="adam", lr=3e-3
        ),
        "cnn, fine-tuning": replace(cnn, frozen=("stem", *(f"blocks.{i}." for i in range(9))), optimizer="adam", lr=3e-3),
        "rescnn, no normalization": replace(res, norm=False, init="default", lr=0.02),
        "rescnn, zero-initialized branches": replace(res, norm=False, extra="zero-residual", lr=0.05),
        "lstm, SGD": replace(lstm, optimizer="sgd", lr=5.0, clip=0.25),
        "lstm, SGD 20 clipped": replace(lstm, optimizer="sgd", lr=20.0, clip=0.25),
        "lstm, unclipped": replace(lstm, clip=None),
        "gru, unclipped": replace(gru, clip=None),
        "rnn, unclipped": replace(rnn, clip=None),
        "transformer, warm-up": replace(former, schedule="warmup"),
        "transformer, ReLU": replace(former, activation="relu"),
        "transformer, large weight decay": replace(former, weight_decay=0.3),
        "gan, least squares, clipped": replace(gan, extra="least-squares", optimizer="sgd", lr=0.1, clip=1.0, momentum=0.0),
        "gan, usual rate": replace(gan, lr=5e-4),
        "gan, two time scales": replace(gan, lr_second=4e-3),
        "autoencoder, sigmoid output": replace(auto, extra="sigmoid-output", lr=3e-3),
        "autoencoder, tanh": replace(auto, activation="tanh", init="xavier"),
        "sparse embedding": Setup("other", extra="sparse-embedding", lr=1.0, momentum=0.0),
        "dense embedding": Setup("other", extra="embedding", optimizer="adam", lr=0.02),
        "density, loss below zero": Setup("other", extra="density", optimizer="adam", lr=5e-3, width=64),
        "linear model": Setup("other", extra="linear", lr=0.05),
        "tiny net": Setup("other", extra="tiny", optimizer="adam", lr=0.02),
    }
    cases = [Case(f"{name}, as it should be", None, setup) for name, setup in HEALTHY.items()]
    return cases + [Case(name, None, setup) for name, setup in awkward.items()]
