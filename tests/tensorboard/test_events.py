import json
import math

import numpy as np
import pytest

from lightning_gradguard.tensorboard.events import EventLog
from tests.tensorboard.synthetic import VANISHING, busy_run, make_record

LAYERS = ("stem", "head")


def read(log):
    return json.loads(log.to_json())


def bad_record(step, **changes):
    fields = {"cause": "nan", "verdict": "skipped", "nonfinite_layers": ("head",), "total_norm": math.nan}
    return make_record(step, LAYERS, np.array([1.0, math.nan]), **(fields | changes))


def test_a_quiet_run_has_no_events():
    log = EventLog()
    noted = [log.observe(make_record(i, LAYERS, np.ones(2))) for i in range(100)]
    assert not any(noted)
    assert not log.is_due
    assert read(log) == {"version": 1, "counts": {}, "events": [], "findings": []}


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({}, "nonfinite", "NaN gradient in 1 of 2 layers: step skipped, no weight moved"),
        ({"cause": "inf"}, "nonfinite", "infinite gradient in 1 of 2 layers: step skipped"),
        ({"verdict": "overflow", "loss_scale": 65536.0}, "overflow", "left to the loss scaler (scale 65536)"),
        ({"verdict": "rolled_back"}, "rollback", "weights rolled back"),
        ({"verdict": "nonfinite"}, "nonfinite", "step applied"),
        ({"nonfinite_layers": ()}, "nonfinite", "NaN gradient in the total norm"),
        ({"cause": "buffer", "nonfinite_layers": ()}, "nonfinite", "the forward pass made a buffer non-finite: step"),
        (
            {"cause": "spike", "nonfinite_layers": (), "total_norm": 1e6},
            "spike",
            "gradient norm 1e+06 or loss far above the usual: step skipped, no weight moved",
        ),
    ],
    ids=["nan", "inf", "overflow", "rollback", "unguarded", "total", "buffer", "spike"],
)
def test_a_bad_step_is_told_in_words(changes, kind, words):
    log = EventLog()
    assert log.observe(bad_record(7, **changes))
    (event,) = read(log)["events"]
    assert (event["step"], event["kind"]) == (7, kind)
    assert words in event["text"]


def test_spikes_are_found_where_they_are():
    log = EventLog()
    found = [record.step for record in busy_run(num_records=300) if log.observe(record)]
    content = read(log)
    assert content["counts"] == {"spike": 5, "nonfinite": 1}
    assert [event["step"] for event in content["events"]] == found
    assert all(event["factor"] > 5 for event in content["events"] if event["kind"] == "spike")


def test_a_finding_is_an_event_once_and_its_count_goes_on():
    log = EventLog()
    for step in range(5):
        log.observe(make_record(step, LAYERS, np.ones(2), findings=(VANISHING,)))
    content = read(log)
    assert content["counts"] == {"finding": 1}
    assert content["findings"][0]["remedies"] == list(VANISHING.remedies)
    assert content["findings"][0]["first_step"] == VANISHING.step


def test_the_list_is_bounded_keeps_both_ends_and_counts_all():
    log = EventLog()
    for step in range(1000):
        log.observe(bad_record(step))
    content = read(log)
    steps = [event["step"] for event in content["events"]]
    assert steps == [*range(50), *range(850, 1000)]
    assert content["counts"] == {"nonfinite": 1000}
    assert len(json.dumps(content)) < 50_000


def test_writes_get_rarer_as_the_list_grows_so_that_the_disk_does_not_fill():
    log = EventLog()
    written = 0
    for step in range(1000):
        log.observe(bad_record(step))
        if log.is_due:
            written += len(log.to_json())
    assert log.has_unwritten or not log.is_due
    assert written < 6_000_000


def test_the_first_events_are_due_at_once():
    log = EventLog()
    for step in range(5):
        log.observe(bad_record(step))
        assert log.is_due
        log.to_json()
        assert not log.is_due


def test_infinite_evidence_is_still_strict_json():
    log = EventLog()
    finding = VANISHING.__class__(rule="r", severity="info", message="m", step=0, evidence={"slope": -math.inf})
    log.observe(make_record(0, LAYERS, np.ones(2), findings=(finding,)))
    assert read(log)["findings"][0]["evidence"] == {"slope": "-inf"}


def test_a_dropped_spike_says_how_many_times_the_good_steps_it_was():
    log = EventLog()
    log.observe(bad_record(3, cause="spike", nonfinite_layers=(), total_norm=50.0, max_total_norm=2.0))
    log.observe(bad_record(4, cause="spike", nonfinite_layers=(), total_norm=50.0, max_total_norm=0.0))
    assert [event["factor"] for event in read(log)["events"]] == [25.0, 1.0]
