"""Real runs of the detection benchmark, a cheap one for every fault, and healthy ones beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from detection.cases import FAULTS, healthy_cases, sick_cases
from detection.cures import CURES, cured
from detection.published import RULE_SETS, Recorder, judge
from detection.training import train

from lightning_gradguard.diagnose import Diagnosis, default_rules, remedies

CHEAP = ("mlp", "rnn", "gan", "autoencoder")
SICK = {case.fault: case for case in reversed(sick_cases()) if case.name.startswith(CHEAP)}
HEALTHY = [
    "mlp, as it should be",
    "gan, as it should be",
    "rnn, answer after a delay",
    "mlp, low-rank adapters",
    "mlp, frozen early layers",
    "mlp, warm-up",
    "mlp, cosine to zero",
    "mlp, sparse activity",
    "mlp, tiny loss factor",
    "mlp, float16 with scaler",
    "mlp, AutoClip",
    "autoencoder, sigmoid output",
    "density, loss below zero",
    "sparse embedding",
    "tiny net",
]


def diagnose(records):
    diagnosis = Diagnosis(default_rules())
    for record in records:
        diagnosis.observe(record)
    return diagnosis.findings + diagnosis.cleared


def test_every_fault_has_a_cheap_run():
    assert set(SICK) == {fault.name for fault in FAULTS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_injected_cause_is_named_first(fault):
    setup, _ = SICK[fault.name].draw(seed=0)
    found = diagnose(train(setup, seed=0).records)
    assert found, "not flagged"
    assert found[0].rule in fault.named_by, [f.rule for f in found]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_gets_no_finding(name):
    (case,) = [case for case in healthy_cases() if case.name == name]
    outcome = train(case.draw(seed=0)[0], seed=0)
    assert outcome.final_loss < outcome.first_loss or name.startswith("gan")
    assert [f.message for f in diagnose(outcome.records)] == []


def test_a_remedy_is_carried_out_and_cures():
    setup, _ = SICK["learning rate too low"].draw(seed=0)
    outcome = train(setup, seed=0)
    better = train(cured(setup, diagnose(outcome.records)[0]), seed=0)
    assert better.final_loss < 0.7 * outcome.final_loss


def test_every_first_remedy_can_be_carried_out():
    known = {value for name, value in vars(remedies).items() if name.isupper()}
    assert set(CURES) <= known
    assert known - set(CURES) == {
        remedies.OTHER_ACTIVATION,
        remedies.LEAKY,
        remedies.WARM_UP,
        remedies.GATED,
        remedies.LESS_TRAINING,
    }, "never first, so never tried by the benchmark"


def test_the_same_seed_gives_the_same_run():
    case = SICK["zero initialization"]
    assert case.draw(3) == case.draw(3)
    assert case.draw(3) != case.draw(4)
    setup, _ = case.draw(3)
    assert train(setup, 3).losses == train(setup, 3).losses


def test_published_rules_fire_where_they_must():
    def first_fired(name):
        case = next(c for c in sick_cases() if c.name == name)
        setup, _ = case.draw(0)
        recorder = Recorder(setup)
        train(setup, 0, recorder)
        return judge(recorder.snapshots)

    dead = first_fired("mlp: dead units by bias")
    assert set(dead) == set(RULE_SETS)
    assert all(dead.values()), dead
    assert first_fired("mlp: input not normalized")["DeepDiagnosis"] == "numerical error"


def test_watching_for_published_rules_does_not_change_the_run():
    setup, _ = SICK["saturated activation"].draw(0)
    assert train(setup, 0, Recorder(setup)).losses == train(setup, 0).losses
