"""Each rule: what it must speak up about, and what looks like it and is well."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from pathlib import Path

import pytest

from benchmarks.detection.causes import CAUSES
from lightning_gradguard.diagnose import (
    BadBatches,
    ClippingAlways,
    CriticWon,
    DeadUnits,
    Diagnosis,
    Diverged,
    DoubleActivation,
    ExplodingOverDepth,
    ExplodingOverTime,
    Fp16Headroom,
    Fp16Underflow,
    FrozenLast,
    HighMomentum,
    IdenticalUnits,
    InputScale,
    LargeUpdates,
    LossRises,
    LossScaleCollapse,
    NoGradient,
    NoStep,
    OldGradients,
    OptimizerImbalance,
    OutputRange,
    OutputScale,
    Outweighed,
    PoorInitialization,
    RateDecayed,
    Runaway,
    SaturatedActivations,
    SaturatedAttention,
    SaturatedOutput,
    SmallUpdates,
    StaleStatistics,
    StarvingPart,
    TargetScale,
    Unoptimized,
    Unregistered,
    VanishingOverDepth,
    VanishingOverTime,
    WeightDecay,
    WrongSign,
    ZeroGradient,
    ZeroRate,
    default_rules,
    remedies,
    rules,
)
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.progress import Progress
from lightning_gradguard.record import BatchStats, LossStats, RunningStats

N = 8  # records of each run
FADING = tuple(10.0**-i for i in range(6, 0, -1))


def steady(**fields):
    return [fields] * N


def over(name, values, **fields):
    return [{name: value, **fields} for value in values]


def acts(*stats, **fields):
    """Activations as (module, kind, {field: value}) in the order of the forward pass."""
    return {"activations": stats, **fields}


LINEAR = ("a", "Linear", {})
HEAD = ("head", "Linear", {})

BAD = {"verdict": "skipped", "cause": "nan", "num_nonfinite": 1, "total_norm": math.nan, "nonfinite_layers": ("a",)}

X = BatchStats("0", 1.0)
STAMPS = acts(("e", "Embedding", {"input_rms": 4.0}), ("f", "Linear", {"rms": 1e8}), HEAD)
RAW_SERIES = (BatchStats("0", 300.0), BatchStats("1", 299.0))
TARGETS_OF_EITHER_SIGN = LossStats("squared-error", target_low=-2.0, target_high=2.0, given_rms=0.3)
TABLE = {
    "layers": ("table", "a", "head"),
    "layer_kinds": ("Embedding", "Linear", "Linear"),
    "layer_sizes": (6400, 100, 100),
    "trainable": (False, True, True),
    "frozen_last": (),
}
EXPERTS = ("experts.0", "experts.1", "experts.2", "experts.3", "head")

SICK = {
    "nobody steps": (NoStep(), steady(num_steps=0, waiting=64)),
    "nothing has a gradient": (NoGradient(), steady(num_steps=0, layer_norms=(None,) * 6)),
    "a cut before the head": (NoGradient(), steady(layer_norms=(None,) * 5 + (0.1,))),
    "a head that no optimizer has": (Unoptimized(), steady(unoptimized=("head",))),
    "blocks in a plain list": (Unregistered(), steady(unregistered=("blocks[0]",))),
    "a factor that is frozen at zero": (FrozenLast(), steady(frozen_last=(), frozen_zeros=("a.up",))),
    "a frozen head": (FrozenLast(), steady(frozen_last=("head",))),
    "a frozen table that was never trained": (FrozenLast(), steady(**TABLE, weight_norms=(80.3, 1.0, 1.0))),
    "a momentum of zero": (StaleStatistics(), steady(running=(RunningStats("a", 1.0, 9, True),))),
    "a copy that runs in its place": (StaleStatistics(), steady(running=(RunningStats("a", 1.0, 0, True),))),
    "a tiny momentum": (StaleStatistics(), steady(running=(RunningStats("a", 0.9, 200, True),), epoch=1)),
    "normalization that is switched off": (StaleStatistics(), steady(running=(RunningStats("a", 1.0, 0, False),))),
    "a learning rate of zero": (ZeroRate(), steady(learning_rates=(0.0,) * 6, update_ratios=(0.0,) * 6)),
    "steps that move nothing": (ZeroRate(), steady(learning_rates=(0.1,) * 6, update_ratios=(0.0,) * 6)),
    "gradients that add up": (OldGradients(), steady(old_gradients=True)),
    "maximize": (WrongSign(), [{"loss": 1.3**i, "total_norm": 1.3**i, "maximizes": True} for i in range(16)]),
    "a loss without a floor, from above zero": (
        WrongSign(),
        [{"loss": 2.0 - 1.8**i, "total_norm": 1.8**i} for i in range(14)],
    ),
    "a net that is sure of everything": (
        OutputScale(),
        [{"losses": (LossStats("cross-entropy", 2.2, value=300.0),), "loss": 300.0}] * N,
    ),
    "softmax twice": (DoubleActivation(), steady(losses=(LossStats("cross-entropy", 2.3, True),))),
    "weight decay of 60": (
        WeightDecay(),
        [{"weight_decays": (60.0,) * 6, "learning_rates": (5e-3,) * 6, "optimizer_kind": "AdamW"}] * 30,
    ),
    "decay added before Adam normalizes": (
        WeightDecay(),
        [{"weight_decays": (100.0,) * 6, "learning_rates": (1e-3,) * 6, "optimizer_kind": "Adam"}] * 30,
    ),
    "a momentum of a thousand steps": (HighMomentum(), steady(momentum=0.999)),
    "a divergence that outweighs the error": (
        Outweighed(),
        [{"loss": 9.0, "losses": (LossStats("squared-error", 1.0, value=1.0),)}] * 40,
    ),
    "input of 1e-4": (InputScale(), steady(**acts(("a", "Linear", {"input_rms": 1e-4}), HEAD))),
    "input of zero": (InputScale(), steady(**acts(("a", "Linear", {"input_rms": 0.0}), HEAD))),
    "the same sample again and again": (
        InputScale(),
        steady(**acts(("a", "Linear", {"input_rms": 1.0}), HEAD), inputs=(BatchStats("0", 1.0, varies=False),)),
    ),
    "a column of 1e6": (
        InputScale(),
        steady(**acts(("a", "Linear", {"input_rms": 20.0}), HEAD), inputs=(BatchStats("0", 20.0, spread=1e6),)),
    ),
    "a column of time stamps beside embeddings": (
        InputScale(),
        steady(**STAMPS, inputs=(BatchStats("0", 4.0, floating=False), BatchStats("1", 9e8), BatchStats("2", 1.0))),
    ),
    "a softmax that looks patterns up": (
        SaturatedAttention(),
        steady(**acts(LINEAR, *[(f"softmax(){n}", "Softmax", {"saturated": 0.99}) for n in ("", "#2", "#3")])),
    ),
    "two layers, and nothing that fires between them": (
        VanishingOverDepth(),
        steady(layers=("a", "head"), layer_norms=(1e-9, 0.5), weight_norms=(1.0, 1.0)),
    ),
    "targets of 1e5": (TargetScale(), steady(inputs=(X, BatchStats("1", 1e5)), loss=1e10)),
    "units of one constant": (IdenticalUnits(), steady(**acts(("a", "Linear", {"unit_spread": 0.0}), HEAD))),
    "attention without its scale": (
        SaturatedAttention(),
        steady(**acts(LINEAR, ("attention()", "Attention", {"saturated": 0.9, "max_logit": 300.0}), HEAD)),
    ),
    "a critic that has won": (
        CriticWon(),
        [
            {"optimizer": i % 2, "num_optimizers": 2, "loss": (1.4 * 0.6 ** (i // 2), 0.7 + i / 4)[i % 2]}
            for i in range(40)
        ],
    ),
    "a rate of zero, late": (
        RateDecayed(),
        over("learning_rates", [(0.1 if i < 30 else 0.0,) * 6 for i in range(40)]),
    ),
    "a rate that is gone": (RateDecayed(), over("learning_rates", [(0.5**i,) * 6 for i in range(40)])),
    "clipped by the Trainer": (ClippingAlways(), steady(clip_outside=1e-4, total_norm=1.0)),
    "an expert that starves": (
        StarvingPart(),
        steady(layers=EXPERTS, layer_norms=(0.1, 0.1, 1e-7, 0.1, 0.2)),
    ),
    "an output that is all flat": (
        SaturatedOutput(),
        [acts(LINEAR, HEAD, ("sigmoid()", "Sigmoid", {"saturated": 1.0}))] * 30,
    ),
    "a ReLU before targets of either sign": (
        OutputRange(),
        steady(**acts(LINEAR, HEAD, ("relu()", "ReLU", {"rms": 0.3})), losses=(TARGETS_OF_EITHER_SIGN,)),
    ),
    "an embedding that was never loaded": (
        InputScale(),
        steady(
            **acts(("a", "Embedding", {"rms": 0.0, "input_rms": 5.0}), HEAD),
            trainable=(False, *(True,) * 5),
        ),
    ),
    "a series that is predicted raw": (
        TargetScale(),
        steady(**acts(("a", "Linear", {"input_rms": 300.0}), HEAD), loss=9e4, inputs=RAW_SERIES),
    ),
    "a loss that rises": (LossRises(), over("loss", [2.0 + 0.5 * i for i in range(20)])),
    "bad batches": (BadBatches(), [BAD if i in (3, 8) else {"loss": 0.9**i} for i in range(12)]),
    "bad from the first step": (BadBatches(), [{**BAD, "loss": math.nan}] * N),
    "diverged": (Diverged(), [{}] * 3 + [BAD] * 5),
    "no gradient": (NoGradient(), steady(layer_norms=(None, None, 0.1, 0.1, 0.1, 0.1))),
    "frozen in the middle": (
        NoGradient(),
        steady(layer_norms=(0.1, None, 0.1, 0.1, 0.1, 0.1), trainable=(True, False, True, True, True, True)),
    ),
    "wrong sign": (WrongSign(), [{"loss": -(2.0**i), "total_norm": 2.0**i} for i in range(3 * N)]),
    "wrong sign, broken at once": (
        WrongSign(),
        [{"loss": -2.0}, *over("loss", [-math.inf] * N, total_norm=math.nan, verdict="skipped")],
    ),
    "the negative of a cross-entropy": (
        WrongSign(),
        [{"loss": -2.3, "losses": (LossStats("cross-entropy", 2.2, value=2.3),)}] * 2 + [{"loss": -9.0}] * N,
    ),
    "masks of 0 and 255": (
        WrongSign(),
        [{"loss": 5.0, "losses": (LossStats("binary-cross-entropy", math.nan, target_low=0, target_high=255),)}] * N,
    ),
    "an overlap with masks of 0 and 255": (
        WrongSign(),
        [{"loss": -0.1, "losses": (LossStats("overlap", value=-0.1, target_low=0, target_high=255),)}] * N,
    ),
    "an overlap that is minimized": (
        WrongSign(),
        [{"loss": 1.1, "losses": (LossStats("overlap, minimized", value=1.1, target_low=0, target_high=1),)}] * N,
    ),
    "an overlap of raw outputs": (DoubleActivation(), steady(losses=(LossStats("overlap", raw=True),))),
    "an encoder that was frozen as it was drawn": (
        FrozenLast(),
        [
            {"losses": (LossStats("cross-entropy", 1.0, value=1.0),), "frozen_last": (), "frozen_as_drawn": ("enc",)},
            *steady(num_steps=20),
        ],
    ),
    "steps that stay large beside weights that grow": (
        LargeUpdates(),
        [{"update_ratios": (0.05,) * 6, "weight_norms": (1.0 + i,) * 6, "num_steps": 20} for i in range(N)],
    ),
    "gradients that are cleared before the step": (
        NoStep(),
        [{"num_steps": 0, "layer_norms": (None,) * 6, "cleared": True}] * N,
    ),
    "returns of ten thousand": (
        TargetScale(),
        steady(**acts(LINEAR, HEAD), inputs=(X,), loss=1e8),
    ),
    "clipped to a twentieth while the loss stands still": (
        ClippingAlways(),
        [{"clip_outside": 1e-3, "total_norm": 0.02, "loss": 1.0}] * 40,
    ),
    "rounding in the middle": (NoGradient(), steady(layer_norms=(0.0, 0.0, 0.0, 0.1, 0.1, 0.1))),
    "a signal of which biases are left": (
        PoorInitialization(),
        steady(**acts(*[(f"l{i}", "Linear", {"sample_spread": 10.0 ** (-2 * i)}) for i in range(6)])),
    ),
    "one token for all": (
        InputScale(),
        steady(
            **acts(("a", "Embedding", {"input_rms": 100.0}), HEAD),
            inputs=(BatchStats("0", 100.0, varies=False, floating=False),),
        ),
    ),
    "a warm-up of a million steps": (
        SmallUpdates(),
        over("update_ratios", [(1e-13 * 1.6**i,) * 6 for i in range(40)]),
    ),
    "fp16 underflow": (
        Fp16Underflow(),
        steady(**acts(*[(m, "Linear", {"dtype": "float16", "grad_underflow": 0.99}) for m in "abc"])),
    ),
    "loss scale collapse": (LossScaleCollapse(), over("loss_scale", [65536.0, 1024.0, 8.0, 1.0, 1.0, 1.0, 0.5, 0.25])),
    "input not normalized": (InputScale(), steady(**acts(("a", "Linear", {"input_rms": 128.0}), HEAD))),
    "fading forward": (
        PoorInitialization(),
        steady(**acts(*[(f"l{i}", "Linear", {"rms": 0.1**i}) for i in range(6)])),
    ),
    "growing forward": (
        PoorInitialization(),
        steady(**acts(*[(f"l{i}", "Conv2d", {"rms": 5.0**i}) for i in range(6)])),
    ),
    "all zero": (
        PoorInitialization(),
        steady(**acts(LINEAR, HEAD), weight_norms=(0.0,) * 6, layer_norms=(0.0,) * 5 + (0.1,)),
    ),
    "saturated from the start": (
        SaturatedActivations(),
        [acts(LINEAR, ("t", "Tanh", {"saturated": 0.9}), HEAD, loss=9.0 - i) for i in range(N)],
    ),
    "saturated in training": (
        SaturatedActivations(),
        [acts(LINEAR, ("t", "Tanh", {"saturated": 0.1 * i}), HEAD) for i in range(12)],
    ),
    "exploding in time": (ExplodingOverTime(), steady(temporal_norms={"rnn": tuple(2.0**-i for i in range(10))})),
    "balance": (
        OptimizerImbalance(),
        [{"optimizer": i % 2, "num_optimizers": 2, "update_ratios": ((0.5, 1e-4)[i % 2],) * 6} for i in range(2 * N)],
    ),
    "a jump": (LargeUpdates(), over("update_ratios", [(0.01,) * 6, (3.0,) * 6, (0.01,) * 6, (0.01,) * 6])),
    "large for long": (LargeUpdates(), steady(update_ratios=(0.3,) * 6)),
    "clipping always": (
        ClippingAlways(),
        steady(clip_rate=1.0, coefficient=1e-4, total_norm=50.0, verdict="clipped"),
    ),
    "small updates": (SmallUpdates(), steady(update_ratios=(1e-6,) * 6)),
    "vanishing": (VanishingOverDepth(), steady(layer_norms=FADING)),
    "flat and dead": (VanishingOverDepth(), steady(layer_norms=(1e-9, 2e-9, 1e-9, 1e-9, 2e-9, 0.5))),
    "exploding": (ExplodingOverDepth(), steady(layer_norms=FADING[::-1])),
    "vanishing in time": (VanishingOverTime(), steady(temporal_norms={"rnn": tuple(0.1**i for i in range(9, -1, -1))})),
    "dead units": (
        DeadUnits(),
        [acts(LINEAR, ("r", "ReLU", {"dead": 0.9, "num_batches": i + 1}), HEAD) for i in range(N)],
    ),
    "fp16 headroom": (Fp16Headroom(), steady(**acts(("a", "Linear", {"range_used": 0.8, "dtype": "float16"})))),
    "zero gradient": (ZeroGradient(), steady(layer_norms=(0.0, 0.0, 0.1, 0.1, 0.1, 0.1))),
    "runaway": (Runaway(), [{"total_norm": 3.0**i, "loss": 1.0 + i} for i in range(12)]),
}

WELL = {
    "a record of a step": (NoStep(), steady()),
    "a batch without a loss, later on": (
        NoGradient(),
        [{}] * 3 + [{"num_steps": 0, "layer_norms": (None,) * 6}] * 5,
    ),
    "all in an optimizer": (Unoptimized(), steady(unoptimized=())),
    "all registered": (Unregistered(), steady(unregistered=())),
    "a frozen language model behind its prompt": (
        FrozenLast(),
        steady(layers=("prompt", "adapter"), frozen_last=tuple(f"block.{i}" for i in range(12))),
    ),
    "random features that serve": (
        FrozenLast(),
        [
            {"losses": (LossStats("cross-entropy", 1.0, value=0.8**i),), "loss": 0.8**i, "num_steps": 1 + 20 * (i > 0)}
            | ({"frozen_last": (), "frozen_as_drawn": ("enc",)} if i < 2 else {})
            for i in range(N)
        ],
    ),
    "an overlap that is maximized": (
        WrongSign(),
        [{"loss": -0.9, "losses": (LossStats("overlap", value=-0.9, target_low=0, target_high=1),)}] * N,
    ),
    "large steps at first": (
        LargeUpdates(),
        over("update_ratios", [(0.15 * 0.6**i,) * 6 for i in range(N)], num_steps=20),
    ),
    "a frozen table of word vectors": (FrozenLast(), steady(**TABLE, weight_norms=(30.0, 1.0, 1.0))),
    "a frozen table that was scaled to one": (FrozenLast(), steady(**TABLE, weight_norms=(80.0, 1.0, 1.0))),
    "the first batches": (StaleStatistics(), steady(running=(RunningStats("a", 0.9, 1, True),), epoch=1)),
    "a small momentum in a long epoch": (
        StaleStatistics(),
        steady(running=(RunningStats("a", 0.9, 200, True),), epoch=0),
    ),
    "a warm-up from zero": (
        ZeroRate(),
        [{"learning_rates": (0.1 * i,) * 6, "update_ratios": (0.01 * i,) * 6} for i in range(N)],
    ),
    "accumulation": (OldGradients(), steady(old_gradients=False)),
    "a net that is unsure": (OutputScale(), steady(losses=(LossStats("cross-entropy", 2.2, value=2.4),))),
    "raw outputs": (DoubleActivation(), steady(losses=(LossStats("cross-entropy", 2.3, False),))),
    "the usual decay": (
        WeightDecay(),
        steady(weight_decays=(0.1,) * 6, learning_rates=(1e-3,) * 6, optimizer_kind="AdamW"),
    ),
    "the momentum of published recipes": (HighMomentum(), steady(momentum=0.99)),
    "a divergence beside an error that falls": (
        Outweighed(),
        [{"loss": 9.0, "losses": (LossStats("squared-error", 1.0, value=0.8),)}] * 40,
    ),
    "an input of 1e9 that enters beside embeddings is no target": (
        TargetScale(),
        steady(**STAMPS, inputs=(BatchStats("0", 4.0, floating=False), BatchStats("1", 9e8), X), loss=1e16),
    ),
    "targets of 1e5 are no input": (
        InputScale(),
        steady(**acts(("a", "Linear", {"input_rms": 1.0}), HEAD), inputs=(X, BatchStats("1", 1e5)), loss=1e10),
    ),
    "a softmax that is sure is no sigmoid": (
        SaturatedActivations(),
        steady(**acts(LINEAR, ("softmax()", "Softmax", {"saturated": 0.99}), HEAD)),
    ),
    "a classifier that is sure, once": (
        SaturatedAttention(),
        steady(**acts(("softmax()", "Softmax", {"saturated": 0.99}))),
    ),
    "a first layer that gets a thousandth": (
        VanishingOverDepth(),
        steady(layers=("a", "head"), layer_norms=(1e-3, 0.5), weight_norms=(1.0, 1.0)),
    ),
    "targets that the model normalizes": (TargetScale(), steady(inputs=(X, BatchStats("1", 1e5)), loss=0.9)),
    "tokens": (TargetScale(), steady(inputs=(BatchStats("0", 200.0, floating=False),), loss=9.0)),
    "units that differ": (IdenticalUnits(), steady(**acts(("a", "Linear", {"unit_spread": 3.0}), HEAD))),
    "a sure classifier": (
        SaturatedAttention(),
        steady(**acts(LINEAR, HEAD, ("softmax()", "Softmax", {"saturated": 0.99}))),
    ),
    "a Wasserstein critic": (
        CriticWon(),
        [{"optimizer": i % 2, "num_optimizers": 2, "loss": (-0.1 * i, 0.1 * i)[i % 2]} for i in range(40)],
    ),
    "a line to zero": (
        RateDecayed(),
        over("learning_rates", [(max(0.0, 1 - i / 34),) * 6 for i in range(40)]),
    ),
    "a cosine to zero": (
        RateDecayed(),
        over("learning_rates", [(0.5 * (1 + math.cos(math.pi * i / 39)),) * 6 for i in range(40)]),
    ),
    "blocks one after the other": (
        StarvingPart(),
        steady(layers=tuple(f"block.{i}" for i in range(6)), layer_norms=tuple(10.0**-i for i in range(6, 0, -1))),
    ),
    "an output that was open": (
        SaturatedOutput(),
        steady(**acts(LINEAR, HEAD, ("sigmoid()", "Sigmoid", {"saturated": 0.3}))),
    ),
    "logits that lie between 0 and 1 by chance": (
        DoubleActivation(),
        steady(
            **acts(LINEAR, ("relu()", "ReLU", {"rms": 1.0}), HEAD),
            losses=(LossStats("binary-cross-entropy", 0.7, probabilities=True, value=0.7, given_rms=0.2),),
        ),
    ),
    "a state that begins at zero": (
        InputScale(),
        steady(**acts(("a", "Linear", {"input_rms": 0.0}), HEAD), inputs=(X,)),
    ),
    "a linear layer before targets of either sign": (
        OutputRange(),
        steady(**acts(LINEAR, HEAD), losses=(TARGETS_OF_EITHER_SIGN,)),
    ),
    "a policy's tanh beside the squared error of its critic": (
        OutputRange(),
        steady(**acts(LINEAR, HEAD, ("tanh()", "Tanh", {"rms": 0.9})), losses=(TARGETS_OF_EITHER_SIGN,)),
    ),
    "an embedding that begins at zero": (
        InputScale(),
        steady(**acts(("a", "Embedding", {"rms": 0.0, "input_rms": 5.0}), HEAD)),
    ),
    "an embedding that grows into its place": (
        LargeUpdates(),
        steady(
            update_ratios=(0.8,) * 6, weight_norms=(0.2,) * 6, layer_kinds=("Embedding",) * 6, layer_sizes=(100,) * 6
        ),
    ),
    "a small start that a tiny rate never leaves": (
        PoorInitialization(),
        steady(
            **acts(("a", "Linear", {"rms": 1.0}), ("b", "Linear", {"rms": 1e-4}), HEAD),
            optimizer_kind="AdamW",
            update_ratios=(1e-6,) * 6,
        ),
    ),
    "a loss that is noisy": (LossRises(), over("loss", [2.0 + 0.5 * (-1) ** i for i in range(40)], loss_std=0.5)),
    "a reward that is maximized": (
        LossRises(),
        [{"loss": 1.0 + i, "maximizes": True} for i in range(20)],
    ),
    "overflows of a loss scaler": (BadBatches(), [{**BAD, "verdict": "overflow"}] * N),
    "spikes that are dropped": (BadBatches(), [{"verdict": "skipped", "cause": "spike"}] * N),
    "a run that rose before it broke": (BadBatches(), [{"total_norm": 10.0**i} for i in range(4)] + [BAD] * 5),
    "two bad batches in a row": (Diverged(), [{}] * 3 + [BAD] * 2 + [{}] * 3),
    "a step that was stopped": (
        ZeroGradient(),
        steady(layer_norms=(math.nan,) * 6, max_layer_norms=(0.0,) * 6, verdict="skipped", num_nonfinite=1),
    ),
    "first layers frozen": (
        NoGradient(),
        steady(layer_norms=(None, None, 0.1, 0.1, 0.1, 0.1), trainable=(False, False, True, True, True, True)),
    ),
    "adapters": (
        NoGradient(),
        steady(
            layer_norms=(0.1, None, 0.1, None, 0.1, 0.1), trainable=(True, False, True, False, True, True)
        ),
    ),
    "frozen norms": (
        NoGradient(),
        steady(
            layer_norms=(0.1, None, 0.1, 0.1, 0.1, 0.1),
            trainable=(True, False, True, True, True, True),
            layer_kinds=("Linear", "BatchNorm1d", "Linear", "Linear", "Linear", "Linear"),
        ),
    ),
    "a density whose spread shrinks": (
        WrongSign(),
        [{"loss": 0.2 - 0.05 * i if i < 50 else -2.3, "total_norm": 0.5 * 1.08**i} for i in range(80)],
    ),
    "clipped to a twentieth in a run that learns": (
        ClippingAlways(),
        [{"clip_outside": 1e-3, "total_norm": 0.02, "loss": 0.95**i} for i in range(40)],
    ),
    "a usual decay under a rate that is far too high": (
        WeightDecay(),
        steady(
            weight_decays=(0.01,) * 6, learning_rates=(1.0,) * 6, optimizer_kind="AdamW", update_ratios=(3.0,) * 6
        ),
    ),
    "biases that are alike behind dead units": (
        IdenticalUnits(),
        steady(**acts(("a", "Linear", {"unit_spread": 0.0, "sample_spread": 0.0}), HEAD)),
    ),
    "a signal that ends in dead units": (
        PoorInitialization(),
        steady(
            **acts(
                ("a", "Linear", {"sample_spread": 1.0}),
                ("r", "ReLU", {"dead": 1.0}),
                ("b", "Linear", {"sample_spread": 0.0}),
                HEAD,
            )
        ),
    ),
    "a loss that is summed up": (
        TargetScale(),
        steady(**acts(LINEAR, HEAD), inputs=(X,), loss=4e3),
    ),
    "scores before a softmax over one": (NoGradient(), steady(layer_norms=(0.0, 0.1, 0.1, 0.1, 0.1, 0.1))),
    "dead units from the start": (
        NoGradient(),
        steady(
            layer_norms=(0.0, 0.0, 0.0, 0.1, 0.1, 0.1), **acts(LINEAR, ("r", "ReLU", {"dead": 1.0}), HEAD)
        ),
    ),
    "outputs that differ between samples": (
        PoorInitialization(),
        steady(**acts(*[(f"l{i}", "Linear", {"sample_spread": 0.5}) for i in range(6)])),
    ),
    "tokens of large numbers": (
        InputScale(),
        steady(
            **acts(("a", "Embedding", {"input_rms": 3e4}), HEAD), inputs=(BatchStats("0", 3e4, floating=False),)
        ),
    ),
    "branches that begin small": (
        VanishingOverDepth(),
        steady(layer_norms=(0.3, 1e-6, 2e-6, 1e-6, 2e-6, 0.5)),
    ),
    "a policy whose returns have grown": (
        LossRises(),
        [
            {"loss": loss, "num_steps": num, "loss_std": None if num == 1 else 0.04}
            for loss, num in zip(
                (0.06, 0.03, 0.01, 0.41, 0.63, 0.58, 0.53, 0.48, 0.47, 0.43, 0.41),
                (1, 1, 1, 2, 4, 8, 16, 17, 15, 35, 50),
                strict=True,
            )
        ],
    ),
    "bad steps after a step that replaced the weights": (
        BadBatches(),
        [{}, {"update_ratios": (30.0,) * 6}, {}, {}, {}, BAD, BAD],
    ),
    "a density's loss": (WrongSign(), [{"loss": 1.0 - i, "total_norm": 1.0 + i} for i in range(N)]),
    "a loss below zero that settles": (WrongSign(), [{"loss": -2.0 - 1 / (i + 1)} for i in range(N)]),
    "a critic's loss": (
        WrongSign(),
        [{"loss": -(2.0**i), "total_norm": 2.0**i, "num_optimizers": 2} for i in range(N)],
    ),
    "silent units in float16": (
        Fp16Underflow(),
        steady(
            **acts(
                ("a", "Linear", {"dtype": "float16", "grad_underflow": 1.0}),
                ("b", "Linear", {"dtype": "float16", "grad_underflow": 0.3}),
                ("c", "Linear", {"dtype": "float16", "grad_underflow": 0.2}),
            )
        ),
    ),
    "loss scale calibrating": (LossScaleCollapse(), over("loss_scale", [65536.0 / 2**i for i in range(12)])),
    "a loss scale of one, chosen": (LossScaleCollapse(), over("loss_scale", [1.0] * N)),
    "raw pixels into a norm": (InputScale(), steady(**acts(("a", "BatchNorm2d", {"input_rms": 128.0}), HEAD))),
    "an adapter at zero": (
        PoorInitialization(),
        steady(**acts(LINEAR, ("up", "Linear", {"rms": 0.0}), HEAD), weight_norms=(1.0, 0.0, 1.0, 1.0, 1.0, 1.0)),
    ),
    "a signal that fades later": (
        PoorInitialization(),
        [acts(LINEAR, ("b", "Linear", {"rms": 1.0 if i < 2 else 1e-6}), HEAD) for i in range(N)],
    ),
    "a saturated output": (SaturatedActivations(), steady(**acts(LINEAR, ("out", "Sigmoid", {"saturated": 0.99})))),
    "saturation while the loss falls": (
        SaturatedActivations(),
        [acts(LINEAR, ("t", "Tanh", {"saturated": 0.1 * i}), HEAD, loss=0.8**i) for i in range(12)],
    ),
    "an LSTM's decay": (ExplodingOverTime(), steady(temporal_norms={"rnn": tuple(0.6**i for i in range(30, -1, -1))})),
    "two time scales": (
        OptimizerImbalance(),
        [{"optimizer": i % 2, "num_optimizers": 2, "update_ratios": ((0.04, 5e-3)[i % 2],) * 6} for i in range(2 * N)],
    ),
    "a bias that starts at zero": (LargeUpdates(), steady(update_ratios=(math.inf, 0.01, 0.01, 0.01, math.inf, 0.01))),
    "branches that start at zero": (
        LargeUpdates(),
        [
            {"weight_norms": (1.0, *(0.0,) * 4, 1.0), "update_ratios": (0.01, *(math.inf,) * 4, 0.01)},
            *over("update_ratios", [(0.01, *(0.9**i,) * 4, 0.01) for i in range(N)]),
        ],
    ),
    "large, but not by much": (LargeUpdates(), [{"update_ratios": (0.15,) * 6, "loss": 0.8**i} for i in range(N)]),
    "AutoClip at the tenth percentile": (
        ClippingAlways(),
        steady(clip_rate=0.9, coefficient=0.6, verdict="clipped"),
    ),
    "a warm-up": (SmallUpdates(), [{"update_ratios": (1e-6 * 2**i,) * 6} for i in range(8)]),
    "a decay to zero": (SmallUpdates(), [{"update_ratios": (0.01 * 10.0**-i,) * 6} for i in range(12)]),
    "fine-tuning at a tiny rate": (SmallUpdates(), [{"update_ratios": (1e-5,) * 6, "loss": 0.9**i} for i in range(12)]),
    "one weak layer": (VanishingOverDepth(), steady(layer_norms=(0.1, 0.1, 1e-6, 0.1, 0.1, 0.1))),
    "two decades": (VanishingOverDepth(), steady(layer_norms=(0.01, 0.02, 0.06, 0.15, 0.4, 1.0))),
    "an embedding that gets little": (
        VanishingOverDepth(),
        steady(layer_norms=(1e-7, 0.1, 0.1, 0.1, 0.1, 0.1), layer_kinds=("Embedding", *("Linear",) * 5)),
    ),
    "two decades up": (ExplodingOverDepth(), steady(layer_norms=(1.0, 0.4, 0.15, 0.06, 0.02, 0.01))),
    "short memory that suffices": (
        VanishingOverTime(),
        [{"temporal_norms": {"rnn": tuple(0.1**i for i in range(9, -1, -1))}, "loss": 0.8**i} for i in range(N)],
    ),
    "sparse activity": (
        DeadUnits(),
        [acts(LINEAR, ("r", "ReLU", {"dead": 0.9**i, "num_batches": 2 * i + 1}), HEAD) for i in range(10)][4:],
    ),
    "half the range": (Fp16Headroom(), steady(**acts(("a", "Linear", {"range_used": 0.3, "dtype": "float16"})))),
    "zero now and then": (
        ZeroGradient(),
        [{"layer_norms": (0.0 if i % 3 else 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)} for i in range(12)],
    ),
    "growth while the loss falls": (Runaway(), [{"total_norm": 3.0**i, "loss": 0.8**i} for i in range(12)]),
}  # fmt: skip


def raised(rule, run, make_record, make_activation):
    diagnosis = Diagnosis([rule])
    for step, fields in enumerate(run):
        fields = dict(fields)
        if "activations" in fields:
            fields["activations"] = tuple(make_activation(m, k, **more) for m, k, more in fields["activations"])
        diagnosis.observe(make_record(step, **fields))
    return diagnosis.findings + diagnosis.cleared


@pytest.mark.parametrize("name", SICK)
def test_it_speaks_up(name, make_record, make_activation):
    rule, run = SICK[name]
    (finding,) = raised(rule, run, make_record, make_activation)
    assert finding.rule == rule.id
    assert finding.causes
    assert finding.remedies
    assert finding.evidence, "a finding shows its numbers"
    assert finding.message


@pytest.mark.parametrize("name", WELL)
def test_it_stays_silent(name, make_record, make_activation):
    rule, run = WELL[name]
    assert raised(rule, run, make_record, make_activation) == []


def test_every_rule_that_has_a_file_is_asked_by_default():
    modules = [
        importlib.import_module(f"{rules.__name__}.{found.name}") for found in pkgutil.iter_modules(rules.__path__)
    ]
    classes = {thing for module in modules for thing in vars(module).values() if isinstance(thing, type)}
    assert {each for each in classes if issubclass(each, Rule) and each is not Rule} == set(rules.RULES)


def test_every_default_rule_has_a_sick_and_a_healthy_run():
    ids = {rule.id for rule in default_rules()}
    assert {rule.id for rule, _ in SICK.values()} == ids
    assert {rule.id for rule, _ in WELL.values()} == ids


def test_every_default_rule_is_the_right_answer_to_some_fault_of_the_benchmark():
    answers = {answer for each in CAUSES.values() for answer in each}
    assert {rule.id for rule in default_rules()} <= answers


def test_every_default_rule_has_an_anchor_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    anchors = set(re.findall(r"^### ([a-z0-9-]+)$", page, flags=re.MULTILINE))
    assert anchors == {rule.id for rule in default_rules()}


def test_a_bad_step_that_ended_in_an_exception_is_said_to_have_had_no_gradients(make_record):
    rule, bad = BadBatches(), {**BAD, "cause": "exception", "nonfinite_layers": ()}
    found = [rule.observe(make_record(step=i, **(bad if i == 3 else {"loss": 0.9**i}))) for i in range(5)]
    assert found[3] is not None
    assert "it ended in an exception because something was not finite, before there were gradients" in found[3].message


def test_the_learning_rate_is_suggested_by_factor(make_record, make_activation):
    (too_high,) = raised(LargeUpdates(), over("update_ratios", [(9.0,) * 6] * 4), make_record, make_activation)
    (too_low,) = raised(SmallUpdates(), steady(update_ratios=(3e-6,) * 6), make_record, make_activation)
    assert too_high.evidence["lower_learning_rate_by"] == 300.0, "9 is 450 times 0.02: the nearest of 100, 300, 1000"
    assert too_low.evidence["raise_learning_rate_by"] == 10_000.0


def test_the_depth_profile_comes_with_its_slope_and_the_layers_left_behind(make_record, make_activation):
    (finding,) = raised(VanishingOverDepth(), steady(layer_norms=FADING), make_record, make_activation)
    assert finding.evidence["slope"] == pytest.approx(1.0)
    assert finding.evidence["decades"] == pytest.approx(5.0)
    assert finding.layers == ("a", "b")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WrongSign(factor=1.0), "factor must be above 1, got 1.0"),
        (lambda: Fp16Underflow(share=1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: Fp16Headroom(share=0.0), "share must lie between 0 and 1, got 0.0"),
        (lambda: LossScaleCollapse(floor=0.0), "floor must be positive, got 0.0"),
        (lambda: InputScale(rms=-1.0), "rms must be positive, got -1.0"),
        (lambda: PoorInitialization(low=2.0, high=1.0), "in order, got 2.0 and 1.0"),
        (lambda: PoorInitialization(spread=1.0), "spread must be above 1, got 1.0"),
        (lambda: SaturatedActivations(share=0.0), "share must lie between 0 and 1, got 0.0"),
        (lambda: ExplodingOverTime(growth=1.0), "growth must be above 1, got 1.0"),
        (lambda: VanishingOverTime(factor=1.0), "factor must lie between 0 and 1, got 1.0"),
        (lambda: OptimizerImbalance(factor=1.0), "factor must be above 1, got 1.0"),
        (lambda: LargeUpdates(share=1.0, jump=0.5), "in order, got 1.0 and 0.5"),
        (lambda: SmallUpdates(share=0.0), "share must be positive, got 0.0"),
        (lambda: SmallUpdates(min_progress=-1.0), "min_progress must not be negative, got -1.0"),
        (lambda: ClippingAlways(rate=0.0), r"rate must lie in \(0, 1\], got 0.0"),
        (lambda: ClippingAlways(coefficient=1.0), "coefficient must lie between 0 and 1, got 1.0"),
        (lambda: VanishingOverDepth(decades=0.0), "decades must be positive, got 0.0"),
        (lambda: VanishingOverDepth(level=1.0), "level must lie between 0 and 1, got 1.0"),
        (lambda: ExplodingOverDepth(decades=-1.0), "decades must be positive, got -1.0"),
        (lambda: DeadUnits(share=0.0), r"share must lie in \(0, 1\], got 0.0"),
        (lambda: DeadUnits(min_batches=0), "min_batches must be at least 1, got 0"),
        (lambda: FrozenLast(share=0.0), r"share must lie in \(0, 1\], got 0.0"),
        (lambda: HighMomentum(momentum=1.0), "momentum must lie between 0 and 1, got 1.0"),
        (lambda: WeightDecay(shrink=0.0), "shrink must be positive, got 0.0"),
        (lambda: WeightDecay(ratio=1.0), "ratio must be above 1, got 1.0"),
        (lambda: InputScale(low=0.0), "low must be positive, got 0.0"),
        (lambda: InputScale(spread=1.0), "spread must be above 1, got 1.0"),
        (lambda: TargetScale(rms=1.0), "rms must be above 1, got 1.0"),
        (lambda: IdenticalUnits(spread=0.0), "spread must lie between 0 and 1, got 0.0"),
        (lambda: SaturatedAttention(share=1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: SaturatedAttention(logit=0.0), "logit must be positive, got 0.0"),
        (lambda: CriticWon(left=1.0), "left must lie between 0 and 1, got 1.0"),
        (lambda: CriticWon(rise=1.0), "rise must be above 1, got 1.0"),
        (lambda: RateDecayed(share=1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: OutputScale(times=1.0), "times must be above 1, got 1.0"),
        (lambda: StarvingPart(ratio=1.0), "ratio must lie between 0 and 1, got 1.0"),
        (lambda: SaturatedOutput(share=1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: Diverged(records=1), "records must be at least 2, got 1"),
        (lambda: Runaway(growth=1.0), "growth must be above 1, got 1.0"),
        (lambda: Runaway(records=0), "records must be at least 1, got 0"),
    ],
)
def test_bad_thresholds_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_few_layers_without_gradient_are_a_fact_and_most_of_them_are_not(make_record):
    few, most = (0.0, 0.1, 0.1, 0.1, 0.1, 0.1), (0.0, 0.0, 0.0, 0.0, 0.1, 0.1)
    severities = [ZeroGradient().observe(make_record(layer_norms=norms)).severity for norms in (few, most)]
    assert severities == ["info", "critical"]


def test_a_module_that_fires_for_nobody_is_no_mere_fact_where_the_layer_before_it_has_no_gradient(
    make_record, make_activation
):
    silent = (make_activation("a"), make_activation("r", "ReLU", dead=1.0, num_batches=9), make_activation("b"))
    for norm, severity in ((0.0, "warning"), (0.1, "info")):
        diagnosis = Diagnosis([DeadUnits()])
        for step in range(20):
            norms = (norm, *(0.1,) * 5)
            diagnosis.observe(make_record(step, loss=0.9**step, layer_norms=norms, activations=silent))
        assert [finding.severity for finding in diagnosis.findings] == [severity]


def test_a_start_that_fades_a_little_is_a_fact_until_the_loss_stands_still(make_record, make_activation):
    for fade, severity in ((0.4, "info"), (0.1, "warning")):
        diagnosis = Diagnosis([PoorInitialization()])
        activations = tuple(make_activation(f"l{i}", rms=fade**i) for i in range(6))
        for step in range(3):
            diagnosis.observe(make_record(step, activations=activations))
        assert [finding.severity for finding in diagnosis.findings] == [severity]


def test_an_expert_that_starves_in_a_run_that_learns_is_a_fact(make_record):
    diagnosis = Diagnosis([StarvingPart()])
    for step in range(30):
        norms = {"layers": EXPERTS, "layer_norms": (0.1, 0.1, 1e-7, 0.1, 0.2)}
        diagnosis.observe(make_record(step, loss=0.9**step, **norms))
    (finding,) = diagnosis.findings
    assert finding.severity == "info"


def test_an_optimizer_that_holds_the_modules_own_parameters_is_not_told_to_hold_them(make_record):
    (finding,) = raised(NoGradient(), steady(num_steps=0, layer_norms=(None,) * 6), make_record, None)
    assert finding.remedies == (remedies.CONNECT,)
    foreign = steady(num_steps=0, layer_norms=(None,) * 2, layers=("unnamed.0.0", "unnamed.0.1"))
    (finding,) = raised(NoGradient(), foreign, make_record, None)
    assert finding.remedies[0] == remedies.OWN_PARAMETERS


def test_a_loss_of_several_terms_that_falls_without_end_is_looked_at_term_by_term(make_record):
    run = [{"loss": -(2.0**i), "total_norm": 2.0**i} for i in range(24)]
    (finding,) = raised(WrongSign(), run, make_record, None)
    assert finding.remedies == (remedies.EACH_SIGN, remedies.FLIP_SIGN)
    whole = [{"loss": each["loss"], "losses": (LossStats("squared-error", 1.0, value=-each["loss"]),)} for each in run]
    (finding,) = raised(WrongSign(), whole, make_record, None)
    assert finding.remedies == (remedies.FLIP_SIGN,)


def test_a_loss_that_only_comes_down_to_that_of_a_constant_has_learned_nothing(make_record):
    losses = [91.0 / (1 + step) + 2.6 for step in range(90)]
    progress = Progress()
    for step, loss in enumerate(losses):
        given = (LossStats("cross-entropy", 2.5, value=loss),)
        progress.add(make_record(step, loss=loss, losses=given, num_steps=1))
        assert progress.state == "unknown" or step >= 23
    assert progress.state == "stalls"


def test_an_embedding_that_grows_into_its_place_makes_no_learning_rate_too_high(make_record):
    small = {"layers": ("e", "f"), "layer_kinds": ("Embedding", "Embedding"), "layer_sizes": (800, 800)}
    grows = steady(**small, layer_norms=(0.1, 0.1), weight_norms=(1.0, 1.0), update_ratios=(0.9, 0.9))
    assert raised(LargeUpdates(), grows, make_record, None) == []
    grown = [{**each, "weight_norms": (28.0, 28.0)} for each in grows]
    assert [f.rule for f in raised(LargeUpdates(), grown, make_record, None)] == ["updates-too-large"]


def test_rows_of_bad_batches_that_end_are_no_divergence_and_one_that_lasts_is(make_record):
    diagnosis = Diagnosis([BadBatches(), Diverged()])
    rows = [*[{}, BAD, BAD, BAD, BAD] * 3, {}]
    for step, fields in enumerate(rows):
        diagnosis.observe(make_record(step, **fields))
    assert [f.rule for f in diagnosis.findings] == ["bad-batches"]
    for step in range(len(rows), len(rows) + 96):
        diagnosis.observe(make_record(step, **BAD))
    assert [f.rule for f in diagnosis.findings] == ["diverged"]


@pytest.mark.parametrize(
    ("fields", "tries"),
    [
        ({}, remedies.raise_rate(1000)),
        ({"optimizer_kind": "Adagrad"}, remedies.raise_rate(10000)),
        ({"optimizer_kind": "RMSprop"}, remedies.raise_rate(10000)),
        ({"layers": ("head",), "update_ratios": (2e-5,)}, remedies.raise_rate(10000)),
        (
            {"optimizer_kind": "SGD", "loss": 2e-9, "losses": (LossStats("cross-entropy", 2.2, value=2.0),)},
            remedies.larger_loss(1e9, "a tiny factor on it"),
        ),
        ({"layer_norms": (0.0, *(1e-14,) * 5), "optimizer_kind": "AdamW"}, "multiply the loss by about 1e+12"),
    ],
    ids=["Adam", "Adagrad", "RMSprop", "a single layer", "a tiny factor", "below eps"],
)
def test_a_rate_is_raised_by_what_the_first_steps_of_its_optimizer_are_worth(make_record, fields, tries):
    finding = SmallUpdates().observe(make_record(**{"update_ratios": (2e-5,) * 6, **fields}))
    assert finding.remedies[0].startswith(tries)


def test_steps_that_move_the_last_layer_alone_are_too_small_where_nothing_was_learned(make_record):
    given = (LossStats("cross-entropy", 2.3, value=2.31),)
    for last, flagged in ((4e-3, True), (2e-2, False)):
        run = [{"loss": 2.31, "losses": given, "update_ratios": (1e-4,) * 5 + (last,)}] * 80
        assert bool(raised(SmallUpdates(), run, make_record, None)) is flagged


def test_a_run_that_blows_up_by_steps_of_usual_size_is_told_no_number(make_record):
    for ratio, tries in ((0.01, remedies.WHAT_GROWS), (0.15, remedies.lower_rate(30))):
        run = [{"loss": 2.0 + i, "update_ratios": (ratio,) * 6} for i in range(20)]
        (finding,) = raised(LossRises(), run, make_record, None)
        assert finding.remedies[0] == tries


def test_a_critic_that_nothing_bounds_runs_away_while_its_loss_falls(make_record):
    run = [{"total_norm": 3.0**i, "loss": -(3.0**i), "num_optimizers": 2} for i in range(12)]
    (finding,) = raised(Runaway(), run, make_record, None)
    assert finding.remedies[0] == remedies.BOUND_CRITIC
    assert not raised(Runaway(), [{**each, "num_optimizers": 1} for each in run], make_record, None)


def test_nll_loss_of_raw_outputs_lacks_a_log_softmax_and_has_no_wrong_sign(make_record):
    raw = (LossStats("cross-entropy", 2.2, value=-0.1, raw=True),)
    (finding,) = raised(DoubleActivation(), steady(losses=raw), make_record, None)
    assert finding.remedies == (remedies.PASS_LOG_PROBABILITIES,)
    run = [{"loss": -(2.0**i), "total_norm": 2.0**i, "losses": raw} for i in range(24)]
    assert not raised(WrongSign(), run, make_record, None)


@pytest.mark.parametrize(
    ("given", "tries"),
    [
        (LossStats("kl-divergence", target_low=0.0, target_high=1.0, raw=True), remedies.PASS_LOG_SOFTMAX),
        (LossStats("kl-divergence", None, True, target_low=0.0, target_high=1.0, raw=True), remedies.PASS_LOGARITHMS),
        (LossStats("kl-divergence", target_low=-3.0, target_high=-0.1), remedies.TARGETS_OF_DIVERGENCE),
        (LossStats("kl-divergence", target_low=0.0, target_high=7.0), remedies.TARGETS_OF_DIVERGENCE),
        (LossStats("kl-divergence, log_target", target_low=0.1, target_high=0.9), remedies.TARGETS_OF_DIVERGENCE),
        (LossStats("kl-divergence", target_low=0.0, target_high=1.0), None),
        (LossStats("kl-divergence, log_target", target_low=-9.0, target_high=0.0), None),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_kl_div_is_told_what_it_lacks(make_record, given, tries):
    found = raised(DoubleActivation(), steady(losses=(given,)), make_record, None)
    assert [finding.remedies for finding in found] == [(tries,)] * (tries is not None)


def test_a_softmax_over_one_output_is_wrong_where_it_is_the_loss(make_record):
    alone = (LossStats("cross-entropy", alone=True),)
    (finding,) = raised(DoubleActivation(), steady(losses=alone, loss=0.0), make_record, None)
    assert finding.remedies == (remedies.ONE_OUTPUT,)
    assert not raised(DoubleActivation(), steady(losses=alone, loss=0.7), make_record, None)


def test_a_usual_decay_beside_a_gradient_that_vanished_is_not_to_blame(make_record):
    run = steady(weight_decays=(5e-4,) * 6, learning_rates=(1e-2,) * 6, optimizer_kind="Adam", layer_norms=(1e-6,) * 6)
    assert not raised(WeightDecay(), run, make_record, None)
    assert raised(WeightDecay(), [{**each, "weight_decays": (0.5,) * 6} for each in run], make_record, None)


def test_in_a_warm_up_the_first_step_tells_little_of_how_far_too_high_the_rate_is(make_record):
    for rates, tries in (((0.3, 0.3), 10), ((0.015, 0.3), 100)):
        rule = LargeUpdates()
        run = [(rates[0], None), (rates[1], (0.28,) * 6), (rates[1], (0.38,) * 6)]
        for step, (rate, ratios) in enumerate(run):
            finding = rule.observe(make_record(step, learning_rates=(rate,) * 6, update_ratios=ratios))
        assert finding.remedies[0] == remedies.lower_rate(tries)


def test_a_loss_that_is_nan_by_targets_below_zero_is_no_matter_of_bad_batches(make_record):
    logits = (LossStats("kl-divergence", target_low=-3.0, target_high=4.0, raw=False),)
    nan = [{**BAD, "loss": math.nan, "losses": logits}] * 4
    assert not raised(BadBatches(), nan, make_record, None)
    assert raised(DoubleActivation(), nan, make_record, None)


@pytest.mark.parametrize(
    ("fields", "tries"),
    [
        ({"layer_shapes": ("8",) * 6}, remedies.SCALES_FROM_ZERO),
        ({"layer_shapes": ("8x8",) * 6, "trainable": (True, True, *(False,) * 4)}, remedies.ONE_FROM_ZERO),
        ({"layer_shapes": ("8x8",) * 6}, remedies.FROM_ZERO),
    ],
    ids=["gates", "adapters of a frozen net", "factors"],
)
def test_what_begins_at_zero_is_told_how_to_begin_by_what_it_is(make_record, make_activation, fields, tries):
    zero = {"weight_norms": (0.0, 0.0, *(1.0,) * 4), "layer_norms": (0.0, 0.0, *(0.1,) * 4)}
    record = make_record(activations=(make_activation("a"), make_activation("head")), **zero, **fields)
    assert PoorInitialization().observe(record).remedies[0] == tries


def test_targets_that_the_training_step_makes_are_known_by_the_squared_error(make_record):
    made = (LossStats("squared-error", 9e4, value=9.1e4, target_low=-900.0, target_high=700.0, given_rms=0.1),)
    (finding,) = raised(TargetScale(), steady(loss=9.1e4, losses=made, inputs=(X,)), make_record, None)
    assert finding.message == "the targets of the squared error go from -900 to 700, and the first loss is 9.1e+04."


def test_weights_that_explode_are_told_by_how_much_smaller_to_begin(make_record):
    finding = ExplodingOverDepth().observe(make_record(layer_norms=FADING[::-1]))
    assert finding.remedies[0] == remedies.smaller_weights(10)


def test_a_threshold_that_lets_a_layer_move_by_half_holds_nothing_back(make_record):
    run = steady(clip_outside=1e-4, total_norm=1.0, update_ratios=(0.01,) * 5 + (0.5,))
    assert not raised(ClippingAlways(), run, make_record, None)


def test_of_two_optimizers_the_one_is_told_to_change_whose_steps_are_unusual(make_record):
    for fast, tries in (
        (0.02, "raise the learning rate by about 100×"),
        (0.5, "lower the learning rate by about 100×"),
    ):
        rule = OptimizerImbalance()
        for optimizer, ratio in ((1, fast / 100), (0, fast)):
            finding = rule.observe(make_record(optimizer=optimizer, num_optimizers=2, update_ratios=(ratio,) * 6))
        assert finding.remedies[0] == f"{tries}, that of optimizer {int(fast < 0.1)}"
