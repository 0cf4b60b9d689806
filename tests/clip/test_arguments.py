"""Bad arguments get an error that says what, got, and do; good ones can come from a configuration file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.chain import Chain
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.clip.quantile import QuantileClip
from lightning_gradguard.clip.value import ValueClip
from lightning_gradguard.clip.zclip import ZClip

BAD_VALUES = [
    (lambda: NormClip(-1.0), "max_norm must be greater than 0, got -1.0; give the largest norm"),
    (lambda: NormClip(0), "max_norm must be greater than 0, got 0"),
    (lambda: NormClip(math.nan), "max_norm must be a number, got nan"),
    (lambda: ValueClip(-0.5), "max_value must be greater than 0, got -0.5"),
    (lambda: AutoClip(percentile=101), r"percentile must be in \[0, 100\], got 101"),
    (lambda: AutoClip(percentile=-1), r"percentile must be in \[0, 100\], got -1"),
    (lambda: AutoClip(window=0), "window must be at least 1, got 0"),
    (lambda: AutoClip(max_norm=-1.0), "max_norm must be greater than 0, got -1.0; .* or None"),
    (lambda: AutoClip(by="norms"), "by must be 'norm' or 'value', got 'norms'"),
    (lambda: ZClip(z=0.0), "z must be greater than 0, got 0.0"),
    (lambda: ZClip(decay=1.0), r"decay must be in \(0, 1\), got 1.0"),
    (lambda: ZClip(decay=math.nan), "decay must be a number, got nan"),
    (lambda: ZClip(warmup=0), "warmup must be at least 1, got 0"),
    (lambda: ZClip(to="median"), "to must be 'adaptive_scaling' or 'mean' or 'percentile', got 'median'"),
    (lambda: AGC(ratio=0.0), "ratio must be greater than 0, got 0.0"),
    (lambda: AGC(eps=0.0), "eps must be greater than 0, got 0.0; .* could never train"),
    (lambda: AdaGC(ratio=0.9), "ratio must be in .*, got 0.9; below 1 every step would be clipped"),
    (lambda: AdaGC(warmup=-1), "warmup must be at least 0, got -1"),
    (lambda: QuantileClip(quantile=1.0), r"quantile must be in \(0, 1\), got 1.0"),
    (lambda: QuantileClip(rate=-0.1), "rate must be greater than 0, got -0.1"),
    (lambda: MaxClip(decay=0.0), r"decay must be in \(0, 1\), got 0.0"),
    (lambda: Chain([]), "at least one policy, got none"),
]
BAD_TYPES = [
    (lambda: NormClip("1.0"), r"max_norm must be a number, got '1.0' \(str\)"),
    (lambda: NormClip(True), r"max_norm must be a number, got True \(bool\)"),
    (lambda: AutoClip(window=10.5), r"window must be a whole number, got 10.5 \(float\)"),
    (lambda: ZClip(max_norm="none"), "max_norm must be a number, got 'none'"),
    (lambda: AGC(exclude="head.*"), r"exclude must be a list of patterns such as \['head.\*'\], got 'head.\*'"),
    (lambda: Chain([NormClip]), r"got <class .*NormClip'>; write NormClip\(...\)"),
    (lambda: Chain([1.0]), r"got 1.0; give policies such as NormClip\(1.0\)"),
]


@pytest.mark.parametrize(("make", "message"), BAD_VALUES, ids=[message for _, message in BAD_VALUES])
def test_a_bad_value_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("make", "message"), BAD_TYPES, ids=[message for _, message in BAD_TYPES])
def test_a_bad_type_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_infinity_is_a_ceiling_that_clips_nothing() -> None:
    assert NormClip(math.inf).max_norm == math.inf
    assert AdaGC(ratio=math.inf).ratio == math.inf


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (NormClip, {"max_norm": 1.0}),
        (ValueClip, {"max_value": 0.5}),
        (AutoClip, {"percentile": 20, "by": "value", "max_norm": None}),
        (ZClip, {"z": 3.0, "to": "mean", "max_norm": 1.0}),
        (AGC, {"exclude": ["head.*"]}),
        (AdaGC, {"warmup": 10}),
        (QuantileClip, {"quantile": 0.9}),
        (MaxClip, {"original": True}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_configuration_file_can_make_it(policy: type[ClipPolicy], arguments: dict[str, Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClipPolicy, "clip")
    one = {"class_path": f"{policy.__module__}.{policy.__name__}", "init_args": arguments}
    both = {"class_path": "lightning_gradguard.clip.chain.Chain", "init_args": {"policies": [one, one]}}
    made = parser.instantiate(parser.parse_object({"clip": one})).clip
    assert type(made) is policy
    assert all(getattr(made, key) == (tuple(v) if isinstance(v, list) else v) for key, v in arguments.items())
    chain = parser.instantiate(parser.parse_object({"clip": both})).clip
    assert [type(inner) for inner in chain.policies] == [policy, policy]
