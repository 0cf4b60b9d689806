"""The detection benchmark: what it calls sick, a few of its runs, and that what is recorded stays as it was."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from benchmarks.detection import __main__ as command
from benchmarks.detection import recorded
from benchmarks.detection.causes import CAUSES
from benchmarks.detection.cures import cured
from benchmarks.detection.judgement import Twin
from benchmarks.detection.measure import Job, Result, carry_out
from benchmarks.detection.plain import metric_of
from benchmarks.detection.published.watch import Watch
from benchmarks.detection.recipe import sgd
from benchmarks.detection.tables import cases
from benchmarks.detection.training import train
from benchmarks.detection.zoo import HALVES, MADE_ON, find
from lightning_gradguard.diagnose import remedies
from lightning_gradguard.record import Finding

KINDS = [kind for kinds in HALVES.values() for kind in kinds]
FAULTS = [(kind, fault) for kind in KINDS for fault in kind.faults]
QUICKLY = ["logistic regression", "frozen trunk", "decay to zero", "counts"]


def short(name: str, steps: int = 30):
    return replace(find(name)[0].recipe, steps=steps, per_epoch=steps)


def test_every_kind_and_every_fault_of_it_has_a_name_of_its_own():
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert len({(kind.name, fault.name) for kind, fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(("kind", "fault"), FAULTS, ids=lambda x: getattr(x, "name", ""))
def test_a_fault_has_a_known_cause_and_a_source(kind, fault):
    assert fault.cause in CAUSES
    assert re.match(r"https?://\S+$|.*et al\. \d{4}", fault.source)


@pytest.mark.parametrize("name", QUICKLY)
def test_a_healthy_run_is_not_accused(name):
    result = carry_out(Job(name, None, 0))
    assert result.after < result.before
    assert result.said == [], result.words


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("logistic regression", "learning rate of 1e-6"),
        ("counts", "SGD at a rate of 0.5"),
        ("two tasks, one trunk", "one loss passed through item()"),
    ],
)
def test_a_fault_is_named(kind, fault):
    assert carry_out(Job(kind, fault, 0)).first in CAUSES[find(kind, fault)[1].cause]


def test_sick_is_what_ends_worse_than_every_twin():
    twin = Twin(before=(2.0, 2.0, 2.1), after=(0.1, 0.12, 0.2))
    assert twin.learns
    assert twin.is_sick([1.9, 2.0, math.inf])
    assert not twin.is_sick([0.1, 0.15, 0.3])
    assert not twin.is_sick([0.1, 0.15, math.inf])


def test_the_same_seed_gives_the_same_run_whoever_watches():
    one, other = train(short("dense digits"), 3), train(short("dense digits"), 3, [Watch()])
    assert (one.after, one.last_loss) == (other.after, other.last_loss)
    assert one.after != train(short("dense digits"), 4).after


@pytest.mark.parametrize(
    "name", ["dense digits", "adversarial networks", "accumulation of four batches", "warm restarts", "diffusion"]
)
def test_the_plain_loop_comes_to_the_metric_of_the_trainer(name):
    recipe = short(name)
    outcome = train(recipe, 1)
    assert metric_of(recipe, 1) == (outcome.before, outcome.after)


def test_published_rules_fire_where_they_must():
    watch = Watch()
    kind, fault = find("counts", "SGD at a rate of 0.5")
    train(fault.change(kind.recipe), 0, [watch])
    assert watch.verdicts["DeepDiagnosis"] == "numerical error"
    assert watch.verdicts["SageMaker Debugger, all"]


def test_a_remedy_is_carried_out_by_itself_or_not_at_all():
    recipe = short("dense digits", 60)
    slow = replace(recipe, optimizer=sgd(1e-6))
    text = remedies.raise_rate(3e4)
    finding = Finding("x", "warning", "", 0, evidence={"raise_learning_rate_by": 3e4}, remedies=(text,))
    assert metric_of(cured(slow, finding), 0)[1] < metric_of(slow, 0)[1] - 0.2
    assert cured(slow, replace(finding, remedies=(remedies.CONNECT,))) is None


def test_a_part_of_the_benchmark_is_shown_and_never_recorded(capsys, monkeypatch):
    monkeypatch.setattr(recorded, "write", lambda *_: pytest.fail("recorded"))
    command.main(["--quick", "--only", "logistic", "--processes", "1"])
    out = capsys.readouterr().out
    assert "logistic regression: learning rate of 1e-6" in out.replace("\n", " ")


def test_results_come_back_as_they_were_written():
    result = Result("a", None, 1, 1.0, math.inf, said=[("x", "warning", 3)], others={"y": "z"})
    assert recorded._result(recorded._strict(result.plain())) == result


def test_the_pages_are_those_of_the_recorded_results():
    record = recorded.read()
    for path, text in recorded.pages(record).items():
        assert path.read_text() == text, path
    assert cases(record.results)


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path, capsys):
    arguments = ["--quick", "--only", "logistic", "--processes", "1", "--save", str(tmp_path / "runs.jsonl")]
    command.main(arguments)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text(lines[0] + "\n")
    command.main(arguments)
    assert [json.loads(x)["after"] for x in (tmp_path / "runs.jsonl").read_text().splitlines()] == [
        json.loads(x)["after"] for x in lines
    ]


def test_the_halves_share_no_kind():
    assert not {kind.name for kind in MADE_ON} & {kind.name for kind in HALVES["unseen"]}
