"""A sample of the fault matrix, drawn evenly from its 500 cases; ``python -m benchmarks.fault_matrix`` runs all."""

from __future__ import annotations

import pytest

from benchmarks.fault_matrix import KINDS, MODELS, MODES, PLACES, Case, cases, run_case, sample

SAMPLE = sample(75)


def name(case: Case) -> str:
    return f"{case.kind}, {case.place}, {case.model}, {case.mode}"


@pytest.mark.parametrize("case", SAMPLE, ids=name)
def test_the_fault_is_seen_at_its_step_named_and_undone(case):
    result = run_case(case)
    assert result.detected or result.absorbed, result
    assert result.located or result.absorbed, f"named {result.named!r} instead of {case.target!r}"
    assert result.alarms == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_healthy_run_raises_no_alarm(model, mode):
    assert run_case(Case("none", None, model, mode)).alarms == 0


def test_the_sample_holds_every_kind_place_model_and_mode():
    for field, values in (("kind", KINDS), ("place", PLACES), ("model", MODELS), ("mode", MODES)):
        assert {getattr(case, field) for case in SAMPLE} == set(values)
    assert len(list(cases())) == 500
