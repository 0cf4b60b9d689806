import inspect
import math
import re
from dataclasses import fields

import pytest
import torch

import lightning_gradguard
from lightning_gradguard import (
    AdaptiveGradientClipping,
    Diagnosis,
    GradGuard,
    GradientNormMonitor,
    Layout,
    MemorySink,
    NonFiniteGuard,
    NormClip,
    TensorBoardSink,
    default_rules,
)

NET = torch.nn.Linear(4, 2)
LAYOUT = Layout.from_optimizer(NET, torch.optim.SGD(NET.parameters(), lr=0.1))
# What an object of each class takes at least; those that only functions of ours make are left to their own tests.
MINIMAL = {
    "WhatIf": ("a run", ()),
    "AdaptiveGradientClipping": (NormClip(1.0),),
    "Chain": ([NormClip(1.0)],),
    "Diagnosis": (default_rules(),),
    "Finding": ("a-rule", "info", "words", 3),
    "GradientPipeline": (NET, torch.optim.SGD(NET.parameters(), lr=0.1), NormClip(1.0), "skip"),
    "Instruments": (NET,),
    "JsonlSink": ("x.jsonl",),
    "Layout": tuple(getattr(LAYOUT, field.name) for field in fields(Layout)),
    "Measurement": (LAYOUT, (None, None), torch.zeros(2), torch.zeros(())),
    "NonFiniteGradientError": ("words",),
    "NormClip": (1.0,),
    "ValueClip": (1.0,),
    "QuantileClip": (0.9,),
    "Run": ([],),
    "TemporalProbe": (NET,),
    "TensorBoardSink": ("runs",),
}
NEED_MORE = {"StepRecord", "ReplayReport", "Clip"}

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
            "AdaptiveGradientClipping(policy=NormClip(max_norm=2.0), joint=False, dry_run=False)",
        ),
        (MemorySink(5), "MemorySink(max_records=5)"),
        (GradGuard(clip=NormClip(2.0)), "GradGuard(clip=NormClip(max_norm=2.0), on_nonfinite='skip', rules=None"),
        (NonFiniteGuard("raise"), "NonFiniteGuard(action='raise', patience=20"),
        (TensorBoardSink("runs", prefix="mine"), "TensorBoardSink('runs', prefix='mine')"),
        (LAYOUT, "Layout(params=2, layers=2, groups=1)"),
        (Diagnosis(default_rules()), "Diagnosis(rules=[BadBatches(), NoStep(), NoGradient(), … "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_shown_of_an_object_are_its_arguments(value, shown):
    assert repr(value).startswith(shown)


@pytest.mark.parametrize("name", [n for n in lightning_gradguard.__all__ if n not in NEED_MORE])
def test_no_public_object_is_shown_as_an_address(name):
    value = getattr(lightning_gradguard, name)
    if inspect.isclass(value) and not inspect.isabstract(value):
        shown = repr(value(*MINIMAL.get(name, ())))
        assert shown.startswith(f"{name}(") and " at 0x" not in shown and len(shown) < 400
