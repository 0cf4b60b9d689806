import math

import pytest

from lightning_gradguard import (
    AdaptiveGradientClipping,
    GradGuard,
    GradientNormMonitor,
    MemorySink,
    NonFiniteGuard,
    NormClip,
)

BAD = {
    "policy class": (
        lambda: AdaptiveGradientClipping(NormClip),
        TypeError,
        r"policy must be a policy, got the class NormClip: write NormClip\(",
    ),
    "policy number": (lambda: AdaptiveGradientClipping(0.5), TypeError, "policy must be a ClipPolicy such as NormClip"),
    "policy string": (lambda: GradGuard(clip="zclip"), TypeError, "got str: 'zclip'"),
    "empty mapping": (lambda: AdaptiveGradientClipping({}), ValueError, "policy is an empty mapping"),
    "negative index": (lambda: AdaptiveGradientClipping({-1: NormClip(1.0)}), ValueError, "count from 0, got -1"),
    "key type": (
        lambda: AdaptiveGradientClipping({1.5: NormClip(1.0)}),
        TypeError,
        "keys are optimizer indices or .* got 1.5",
    ),
    "class in mapping": (
        lambda: AdaptiveGradientClipping({0: NormClip}),
        TypeError,
        r"policy\[0\] must be a policy, got the class",
    ),
    "action": (lambda: NonFiniteGuard(action="ignore"), ValueError, "action must be one of 'skip'.* got 'ignore'"),
    "patience": (lambda: NonFiniteGuard(patience=0), ValueError, "patience must be at least 1"),
    "GradGuard action": (lambda: GradGuard(on_nonfinite="halt"), ValueError, "got 'halt'"),
    "interval": (lambda: GradGuard(log_every_n_steps=0), ValueError, "log_every_n_steps must be at least 1, got 0"),
    "interval type": (
        lambda: GradGuard(log_every_n_steps=2.5),
        TypeError,
        "log_every_n_steps must be an int, got float",
    ),
    "grouping": (
        lambda: GradientNormMonitor(group_by="block"),
        ValueError,
        "group_by must be one of 'layer', 'parameter', got 'block'",
    ),
    "norm": (lambda: GradientNormMonitor(norm_type=0), ValueError, "norm_type must be positive or infinite, got 0"),
    "norm NaN": (
        lambda: GradientNormMonitor(norm_type=math.nan),
        ValueError,
        "norm_type must be positive or infinite, got nan",
    ),
    "norm type": (lambda: GradientNormMonitor(norm_type="inf"), TypeError, "norm_type must be a number, got 'inf'"),
    "a sink alone": (lambda: GradGuard(sinks=MemorySink()), TypeError, "sinks must be a list of Sink"),
    "sink class": (lambda: GradGuard(sinks=[MemorySink]), TypeError, r"got the class MemorySink: write MemorySink\("),
    "not a rule": (lambda: GradGuard(rules=["vanishing"]), TypeError, "rules must hold Rule objects, got 'vanishing'"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_at_construction_with_what_was_got(make, error, message):
    with pytest.raises(error, match=message):
        make()
