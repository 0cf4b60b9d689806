import inspect
import math
import re

import pytest

import lightning_gradguard
from lightning_gradguard import (
    AdaptiveGradientClipping,
    GradGuard,
    GradientNormMonitor,
    MemorySink,
    NonFiniteGuard,
    NormClip,
)

# What an object of each class takes at least; those that take a model or a measurement are left to their own tests.
MINIMAL = {
    "AdaptiveGradientClipping": (NormClip(1.0),),
    "Chain": ([NormClip(1.0)],),
    "JsonlSink": ("x.jsonl",),
    "NormClip": (1.0,),
    "ValueClip": (1.0,),
    "QuantileClip": (0.9,),
    "Run": ([],),
    "TensorBoardSink": ("runs",),
}
NEED_MORE = {"GradientPipeline", "Instruments", "Layout", "Measurement", "StepRecord", "Finding", "TemporalProbe"}
NEED_MORE |= {"NonFiniteGradientError", "ReplayReport", "Clip", "Diagnosis"}

BAD = {
    "policy class": (
        lambda: AdaptiveGradientClipping(NormClip),
        TypeError,
        r"policy must be a policy, got the class NormClip: write NormClip\(",
    ),
    "policy number": (lambda: AdaptiveGradientClipping(0.5), TypeError, "policy must be a ClipPolicy such as NormClip"),
    "policy string": (lambda: GradGuard(clip="zclip"), TypeError, "clip must be .*got str: 'zclip'"),
    "clip class": (lambda: GradGuard(clip=NormClip), TypeError, "clip must be a policy, got the class NormClip"),
    "clip mapping": (lambda: GradGuard(clip={0: NormClip}), TypeError, r"clip\[0\] must be a policy"),
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
    "GradGuard action": (
        lambda: GradGuard(on_nonfinite="halt"),
        ValueError,
        "on_nonfinite must be one of 'skip'.*got 'halt'",
    ),
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GradGuard(on_nonfinite=None, patience=5),
            "GradGuard: with on_nonfinite=None, patience=5 has no effect",
        ),
        (lambda: GradGuard(on_nonfinite=None, patience=5, incident_dir="x"), "patience=5 and incident_dir='x' have no"),
        (lambda: NonFiniteGuard(rollback_after=5), "with action='skip', rollback_after=5 has no effect"),
        (lambda: NonFiniteGuard(max_incidents=5), "with incident_dir=None, max_incidents=5 has no effect"),
        (
            lambda: GradientNormMonitor(rules=[], probe_every_n_steps=5),
            r"with rules=\[\], probe_every_n_steps=5 has no",
        ),
    ],
)
def test_a_setting_without_effect_warns_once(make, message):
    with pytest.warns(UserWarning, match=message) as warned:
        make()
    assert len(warned) == 1


@pytest.mark.parametrize("kind", [GradGuard, GradientNormMonitor, AdaptiveGradientClipping, NonFiniteGuard])
def test_help_explains_every_argument_where_it_stands(kind):
    explained = inspect.getdoc(kind).partition("Args:")[2].partition("Raises:")[0]
    for name in inspect.signature(kind).parameters:
        (words,) = re.findall(rf"^    {name}: (.*)$", explained, re.MULTILINE)
        assert not words.startswith(("as for", "see ", "likewise"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (NormClip(2.0), "NormClip(max_norm=2.0)"),
        (
            AdaptiveGradientClipping(NormClip(2.0)),
            "AdaptiveGradientClipping(policy=NormClip(max_norm=2.0), joint=False)",
        ),
        (MemorySink(5), "MemorySink(max_records=5)"),
        (GradGuard(clip=NormClip(2.0)), "GradGuard(clip=NormClip(max_norm=2.0), on_nonfinite='skip', rules=None"),
        (NonFiniteGuard("raise"), "NonFiniteGuard(action='raise', patience=20"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_shown_of_an_object_are_its_arguments(value, shown):
    assert repr(value).startswith(shown)


@pytest.mark.parametrize("name", [n for n in lightning_gradguard.__all__ if n not in NEED_MORE])
def test_no_public_object_is_shown_as_an_address(name):
    value = getattr(lightning_gradguard, name)
    if inspect.isclass(value) and not inspect.isabstract(value):
        assert " at 0x" not in repr(value(*MINIMAL.get(name, ())))
