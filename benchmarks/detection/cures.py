"""The first remedy of a finding, carried out: what its text asks for, as a change of the set-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.record import Finding

from .setup import Setup

GOOD_RATIO = 5e-3  # update-to-weight ratio to which optimizers out of balance are brought


def _initialize(setup: Setup, finding: Finding) -> Setup:
    init = "he" if setup.activation in ("relu", "silu") else "xavier"
    init = "default" if setup.arch in ("lstm", "gru", "rnn") else init
    return replace(setup, init=init, init_scale=1.0, recurrent_scale=1.0 if setup.arch == "rnn" else None)


def _lower_rate(setup: Setup, finding: Finding) -> Setup:
    return replace(setup, lr=setup.lr / finding.evidence.get("lower_learning_rate_by", 10.0))


def _raise_rate(setup: Setup, finding: Finding) -> Setup:
    return replace(setup, lr=setup.lr * finding.evidence.get("raise_learning_rate_by", 10.0))


def _even_rates(setup: Setup, finding: Finding) -> Setup:
    """The optimizer whose ratio is farther from what is usual gets the rate that brings it there."""
    fast, slow = finding.evidence["fast"], finding.evidence["slow"]
    second, first = setup.lr_second or setup.lr, setup.lr  # discriminator is optimizer 0, generator optimizer 1
    fast_is_second = "optimizer 0 changes" in finding.message
    down, up = GOOD_RATIO / fast, GOOD_RATIO / slow
    scale_second, scale_first = (down, up) if fast_is_second else (up, down)
    return replace(setup, lr=first * scale_first, lr_second=second * scale_second)


CURES: dict[str, Callable[[Setup, Finding], Setup]] = {
    remedies.UNFREEZE: lambda s, f: replace(s, frozen=()),
    remedies.CONNECT: lambda s, f: replace(s, detach_at=None),
    remedies.FLIP_SIGN: lambda s, f: replace(s, sign=1.0),
    remedies.USE_SCALER: lambda s, f: replace(s, scaler=True),
    remedies.USE_BFLOAT16: lambda s, f: replace(s, dtype="bfloat16"),
    remedies.NORMALIZE_INPUT: lambda s, f: replace(s, input_scale=1.0),
    remedies.INIT_NORMAL: _initialize,
    remedies.NORMALIZE: lambda s, f: replace(s, norm=True),
    remedies.RESIDUAL: lambda s, f: replace(s, residual=True),
    remedies.ZERO_BIAS: lambda s, f: replace(s, bias=None),
    remedies.LOWER_RATE: _lower_rate,
    remedies.RAISE_RATE: _raise_rate,
    remedies.RAISE_CEILING: lambda s, f: replace(s, clip=f.evidence["usual_norm"]),
    remedies.CLIP: lambda s, f: replace(s, clip=f.evidence.get("early", 1.0)),
    remedies.ORTHOGONAL: lambda s, f: replace(s, recurrent_scale=1.0),
    remedies.EVEN_RATES: _even_rates,
}


def cured(setup: Setup, finding: Finding) -> Setup:
    """The set-up after the finding's first remedy; unchanged where this architecture cannot take it."""
    cure = CURES.get(finding.remedies[0])
    return setup if cure is None else cure(setup, finding)
