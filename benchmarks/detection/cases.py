"""The runs: architectures that train well, one injected fault each, and awkward but healthy ones."""

from __future__ import annotations

import random
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
    "gan": Setup("gan", init="xavier", optimizer="adam", lr=1e-3),
    "autoencoder": Setup("autoencoder", width=32, optimizer="adam", lr=3e-3),
}  # fmt: skip


Change = Callable[[Setup, random.Random], Setup]


@dataclass(frozen=True)
class Case:
    """A kind of run: what is injected (``fault``; ``None`` for a healthy one), and into what."""

    name: str
    fault: str | None
    base: Setup
    change: Change | None = None

    def draw(self, seed: int) -> tuple[Setup, Setup]:
        """The set-up for one seed, and the same without the fault.

        The seed moves depth, width, batch size, learning rate and how strong the fault is, so that a threshold that
        fits one network by chance does not pass for a rule.
        """
        rng = random.Random(f"{self.name} {seed}")
        healthy = _vary(self.base, rng)
        return (self.change(healthy, rng) if self.change else healthy), healthy


def _vary(setup: Setup, rng: random.Random) -> Setup:
    """Another network of the same kind, which trains as well."""
    depth = max(2, round(setup.depth * rng.uniform(0.8, 1.2))) if setup.depth > 3 else setup.depth
    width = 4 * round(setup.width * rng.uniform(0.8, 1.5) / 4)
    batch_size = setup.batch_size * rng.choice((1, 1, 2)) if setup.batch_size > 4 else setup.batch_size
    return replace(setup, depth=depth, width=width, batch_size=batch_size, lr=setup.lr * 2 ** rng.uniform(-1, 0.3))


@dataclass(frozen=True)
class Fault:
    """A mistake people make, as a change of the set-up, by architecture; ``named_by`` are the rules that say so."""

    name: str
    named_by: frozenset[str]
    on: dict[str, Change]


def _with(**changes: object) -> Change:
    """Sets fields; a pair of numbers is a range to draw from, on a logarithmic scale if both have one sign."""

    def change(setup: Setup, rng: random.Random) -> Setup:
        return replace(setup, **{key: _drawn(value, rng) for key, value in changes.items()})  # type: ignore[arg-type]

    return change


def _drawn(value: object, rng: random.Random) -> object:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, float) for v in value):
        low, high = value
        sign = -1.0 if low < 0 else 1.0
        return sign * abs(low) * (high / low) ** rng.random()
    return value


def _slow(setup: Setup, rng: random.Random) -> Setup:
    return replace(setup, lr=setup.lr * 10 ** rng.uniform(-5, -3.5))


def _freeze_one(setup: Setup, rng: random.Random) -> Setup:
    return replace(setup, frozen=(f"blocks.{rng.randrange(1, _num_blocks(setup) - 1)}.",))


def _cut(setup: Setup, rng: random.Random) -> Setup:
    return replace(setup, detach_at=rng.randrange(1, _num_blocks(setup) - 1))


def _num_blocks(setup: Setup) -> int:
    return {"cnn": setup.depth - 2, "rescnn": setup.depth - 2, "autoencoder": 7}.get(setup.arch, setup.depth)


def _all(change: Change, *architectures: str) -> dict[str, Change]:
    return dict.fromkeys(architectures, change)


EVERYWHERE = ("mlp", "cnn", "rescnn", "lstm", "gru", "rnn", "transformer", "autoencoder")
TOO_SMALL = frozenset({"poor-initialization", "vanishing-over-depth"})
TOO_LARGE = frozenset({"poor-initialization", "exploding-over-depth"})

FAULTS = [
    Fault(
        "saturated activation",
        frozenset({"saturated-activations"}),
        {
            "mlp": _with(activation="tanh", init="xavier", init_scale=(5.0, 12.0)),
            "cnn": _with(activation="tanh", norm=False, init="xavier", init_scale=(5.0, 12.0)),
            "autoencoder": _with(activation="tanh", init="xavier", init_scale=(5.0, 12.0)),
            "rnn": _with(recurrent_scale=1.0, init_scale=(8.0, 20.0)),
        },
    ),
    Fault(
        "initial scale too large",
        TOO_LARGE,
        {
            "mlp": _with(init_scale=(2.2, 4.0)),
            "cnn": _with(norm=False, init_scale=(1.8, 3.0)),
            "rescnn": _with(norm=False, init_scale=(2.0, 3.0)),
            "autoencoder": _with(init_scale=(2.5, 5.0)),
            "transformer": _with(norm=False, init_scale=(3.0, 8.0)),
        },
    ),
    Fault(
        "initial scale too small",
        TOO_SMALL,
        {
            "mlp": _with(init="normal", init_scale=(0.3, 2.0)),
            "cnn": _with(init="normal", init_scale=(0.3, 2.0), norm=False),
            "cnn Xavier for ReLU": _with(init="xavier", norm=False),
            "autoencoder": _with(init="normal", init_scale=(0.3, 2.0), optimizer="sgd", lr=0.05),
            "gru": _with(init="normal", init_scale=(0.003, 0.03), optimizer="sgd", lr=0.1),
        },
    ),
    Fault(
        "sigmoid in a deep net",
        TOO_SMALL,
        {
            "mlp": _with(activation="sigmoid", init="xavier"),
            "cnn": _with(activation="sigmoid", init="xavier", norm=False),
            "autoencoder": _with(activation="sigmoid", init="default", optimizer="sgd", lr=0.1),
        },
    ),
    Fault(
        "zero initialization",
        frozenset({"poor-initialization"}),
        _all(_with(init="zero"), "mlp", "cnn", "autoencoder", "lstm", "gru", "transformer"),
    ),
    Fault(
        "learning rate too high",
        frozenset({"updates-too-large"}),
        {
            "mlp": _with(lr=(1.0, 10.0)),
            "cnn": _with(lr=(10.0, 50.0)),
            "rescnn": _with(lr=(10.0, 50.0)),
            "lstm": _with(lr=(0.5, 3.0)),
            "gru": _with(lr=(0.5, 3.0)),
            "rnn": _with(lr=(0.3, 3.0)),
            "transformer": _with(lr=(0.2, 2.0)),
            "autoencoder": _with(lr=(0.2, 2.0)),
        },
    ),
    Fault("learning rate too low", frozenset({"updates-too-small"}), _all(_slow, *EVERYWHERE)),
    Fault(
        "missing normalization",
        TOO_SMALL | TOO_LARGE,
        {
            "mlp": _with(init="default", depth=16),
            "cnn": _with(norm=False, init="default"),
            "rescnn": _with(norm=False, init="he", depth=30, lr=0.05),
            "transformer": _with(norm=False, depth=10, optimizer="sgd", lr=0.1),
        },
    ),
    Fault(
        "input not normalized",
        frozenset({"input-scale"}),
        {
            "mlp": _with(input_scale=(60.0, 1000.0)),
            "rescnn": _with(input_scale=(60.0, 1000.0)),
            "gru": _with(input_scale=(60.0, 1000.0)),
            "rnn": _with(input_scale=(60.0, 1000.0)),
            "autoencoder": _with(input_scale=(60.0, 1000.0)),
        },
    ),
    Fault(
        "dead units by bias",
        frozenset({"dead-units"}),
        {
            "mlp": _with(bias=(-5.0, -15.0)),
            "cnn": _with(bias=(-5.0, -15.0)),
            "rescnn": _with(bias=(-5.0, -15.0)),
            "autoencoder": _with(bias=(-5.0, -15.0)),
            "transformer": _with(bias=(-8.0, -15.0)),
        },
    ),
    Fault(
        "frozen by mistake",
        frozenset({"no-gradient"}),
        _all(_freeze_one, "mlp", "cnn", "rescnn", "autoencoder")
        | _all(_with(frozen=("rnn.",)), "lstm", "gru", "rnn")
        | {"transformer": _with(frozen=("blocks.1.",))},
    ),
    Fault(
        "detached branch",
        frozenset({"no-gradient"}),
        _all(_cut, "mlp", "cnn", "rescnn", "autoencoder")
        | _all(_with(detach_at=1), "lstm", "gru", "rnn", "transformer"),
    ),
    Fault("wrong sign of the loss", frozenset({"wrong-sign"}), _all(_with(sign=-1.0), *EVERYWHERE)),
    Fault(
        "exploding recurrence",
        frozenset({"exploding-over-time"}),
        {
            "rnn": _with(recurrent_scale=(2.2, 3.0), clip=None, extra="relu-rnn"),
            "rnn long": _with(recurrent_scale=(2.0, 2.5), clip=None, extra="relu-rnn delay"),
        },
    ),
    Fault(
        "vanishing recurrence",
        frozenset({"vanishing-over-time"}),
        {
            "rnn": _with(recurrent_scale=(0.02, 0.1), extra="delay"),
            "rnn larger": _with(recurrent_scale=(0.1, 0.2), extra="delay"),
        },
    ),
    Fault(
        "fp16 underflow",
        frozenset({"fp16-underflow"}),
        {
            "mlp": _with(dtype="float16", loss_scale=(1e-7, 1e-6), optimizer="adam", lr=3e-3),
            "mlp tanh": _with(
                dtype="float16", loss_scale=(1e-7, 1e-6), optimizer="adam", lr=3e-3, activation="tanh", init="xavier"
            ),
            "transformer": _with(dtype="float16", loss_scale=(1e-7, 1e-6)),
            "autoencoder": _with(dtype="float16", loss_scale=(1e-7, 1e-6)),
        },
    ),
    Fault(
        "clipping ceiling too low",
        frozenset({"clipping-always"}),
        _all(_with(clip=(1e-5, 1e-3)), "mlp", "cnn", "rescnn"),
    ),
    Fault(
        "optimizers out of balance",
        frozenset({"optimizer-imbalance"}),
        {
            "gan weak generator": _with(lr=(1e-7, 3e-6), lr_second=1e-3),
            "gan weak critic": _with(lr_second=(1e-7, 2e-6)),
        },
    ),
]  # fmt: skip


def sick_cases() -> list[Case]:
    """Every fault on every architecture that can have it."""
    return [
        Case(f"{where}: {fault.name}", fault.name, HEALTHY[where.split()[0]], change)
        for fault in FAULTS
        for where, change in fault.on.items()
    ]


def healthy_cases() -> list[Case]:
    """The architectures as they should be, and runs that look odd but are well."""
    mlp, cnn, res, lstm, gru, rnn, former, gan, auto = HEALTHY.values()
    awkward = {
        "mlp, tanh and Xavier": replace(mlp, activation="tanh", init="xavier"),
        "mlp, SiLU": replace(mlp, activation="silu", lr=0.03),
        "mlp, sigmoid with batch norm": replace(mlp, activation="sigmoid", init="xavier", norm=True, depth=5, lr=0.1),
        "mlp, dropout": replace(mlp, extra="dropout", depth=3),
        "mlp, Adam": replace(mlp, optimizer="adam", lr=3e-3),
        "mlp, RMSprop": replace(mlp, optimizer="rmsprop", lr=1e-3),
        "mlp, shallow, default init": replace(mlp, depth=2, init="default", lr=0.1),
        "mlp, residual": replace(mlp, residual=True, init="default", lr=0.01, depth=12),
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
        "mlp, batch of four": replace(mlp, batch_size=4, depth=3, lr=0.005),
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
        "cnn, fine-tuning": replace(
            cnn, frozen=("stem", *(f"blocks.{i}." for i in range(9))), optimizer="adam", lr=3e-3
        ),
        "rescnn, no normalization": replace(res, norm=False, init="default", lr=0.05),
        "rescnn, zero-initialized branches": replace(
            res, norm=False, extra="zero-residual", activation="silu", lr=0.03
        ),
        "lstm, SGD": replace(lstm, optimizer="sgd", lr=5.0, clip=0.25),
        "lstm, unclipped": replace(lstm, clip=None),
        "gru, unclipped": replace(gru, clip=None),
        "rnn, unclipped": replace(rnn, clip=None),
        "rnn, answer after a delay": replace(rnn, extra="delay"),
        "gru, answer after a delay": replace(gru, extra="delay"),
        "transformer, warm-up": replace(former, schedule="warmup"),
        "transformer, ReLU": replace(former, activation="relu"),
        "transformer, large weight decay": replace(former, weight_decay=0.3),
        "gan, least squares, clipped": replace(
            gan, extra="least-squares", optimizer="sgd", lr=0.1, clip=1.0, momentum=0.0
        ),
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
