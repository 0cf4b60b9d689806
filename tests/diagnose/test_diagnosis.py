"""Persistence, clearing, counting, silencing: what Diagnosis does with what rules say."""

import pytest
import torch

from lightning_gradguard.diagnose import Diagnosis, Rule, default_rules
from lightning_gradguard.record import Finding


class WhenLossIsHigh(Rule):
    id = "loss-is-high"
    needs = ("loss",)

    def observe(self, record):
        if record.loss < 5:
            return None
        return Finding(self.id, "warning", f"loss is {record.loss}", record.step)


class Counts(Rule):
    id = "counts"
    patience = 1

    def __init__(self):
        self.seen = 0

    def observe(self, record):
        self.seen += 1
        return Finding(self.id, "info", str(self.seen), record.step)


class Shared(Counts):
    id = "shared"
    scope = "run"


def feed(diagnosis, make_record, losses, **fields):
    return [[f.rule for f in diagnosis.observe(make_record(i, loss=x, **fields))] for i, x in enumerate(losses)]


def test_a_finding_is_raised_once_after_it_has_held_three_times_in_a_row(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    assert feed(diagnosis, make_record, [9, 9, 1, 9, 9, 9, 9]) == [[], [], [], [], [], ["loss-is-high"], []]
    (finding,) = diagnosis.findings
    assert finding.count == 6
    assert finding.step == 5
    assert finding.message == "loss is 9"


def test_a_finding_clears_itself_is_told_so_and_reported_again_when_it_comes_back(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    feed(diagnosis, make_record, [9, 9, 9, 1, 1])
    assert diagnosis.findings
    feed(diagnosis, make_record, [1])
    assert not diagnosis.findings
    assert [f.rule for f in diagnosis.cleared] == ["loss-is-high"]
    assert [f.until for f in diagnosis.cleared] == [0]
    assert feed(diagnosis, make_record, [9, 9, 9]) == [[], [], ["loss-is-high"]]
    assert [f.count for f in diagnosis.findings] == [6]


def test_a_record_without_what_a_rule_needs_neither_confirms_nor_clears(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    assert feed(diagnosis, make_record, [9, None, 9, None, None, None, 9])[-1] == ["loss-is-high"]
    feed(diagnosis, make_record, [None] * 5)
    assert diagnosis.findings


def test_a_broken_step_confirms_at_once_what_was_seen_just_before_it(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    assert feed(diagnosis, make_record, [9]) == [[]]
    assert feed(diagnosis, make_record, [None], verdict="skipped") == [["loss-is-high"]]


def test_a_broken_step_does_not_confirm_what_was_not_seen(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    feed(diagnosis, make_record, [9, 1])
    assert feed(diagnosis, make_record, [1, None], verdict="skipped") == [[], []]


def test_an_overflow_under_the_loss_scaler_confirms_nothing(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    feed(diagnosis, make_record, [9])
    assert feed(diagnosis, make_record, [None], verdict="overflow") == [[]]


def test_each_optimizer_gets_its_own_copy_and_a_comparing_rule_is_shared(make_record):
    own, shared = Counts(), Shared()
    diagnosis = Diagnosis([own, shared])
    for optimizer in (0, 1, 0):
        diagnosis.observe(make_record(optimizer=optimizer, num_optimizers=2))
    assert own.seen == 0, "the rule that was handed in is not written to"
    assert shared.seen == 3
    assert sorted(f.message for f in diagnosis.findings if f.rule == "counts") == ["1", "1"]


def test_findings_are_named_in_the_order_of_the_rules(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh(), Counts()])
    feed(diagnosis, make_record, [9, 9, 9])
    assert [f.rule for f in diagnosis.findings] == ["loss-is-high", "counts"]


def test_a_silenced_rule_is_not_asked(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh(), Counts()], silence=("counts",))
    feed(diagnosis, make_record, [9, 9, 9])
    assert [f.rule for f in diagnosis.findings] == ["loss-is-high"]


@pytest.mark.parametrize(
    ("rules", "silence", "error", "message"),
    [
        ([Counts], (), TypeError, r"write Counts\(\)"),
        (["counts"], (), TypeError, "must be Rule objects, got 'counts'"),
        ([Counts(), Counts()], (), ValueError, "'counts' twice"),
        ([Counts()], ("dead",), ValueError, r"cannot silence \['dead'\]: the rules are \['counts'\]"),
    ],
    ids=["class", "string", "twice", "unknown"],
)
def test_bad_arguments_are_named(rules, silence, error, message):
    with pytest.raises(error, match=message):
        Diagnosis(rules, silence=silence)


def test_the_default_rules_are_new_each_time_and_stay_silent_on_quiet_records(make_record):
    first, second = default_rules(), default_rules()
    assert not {id(r) for r in first} & {id(r) for r in second}
    diagnosis = Diagnosis(first)
    feed(diagnosis, make_record, [2.0 - 0.01 * i for i in range(60)])
    assert diagnosis.findings == diagnosis.cleared == []


def test_a_finding_says_what_held_when_it_was_raised_and_not_what_came_after(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    feed(diagnosis, make_record, [9, 8, 7, 1e9, 1e12])
    (finding,) = diagnosis.findings
    assert finding.message == "loss is 7"
    assert finding.count == 5


class Steep(WhenLossIsHigh):
    id = "steep"
    patience = 1
    harmless_if_learning = True
    needs = ()

    def observe(self, record):
        return Finding(self.id, "critical", f"at step {record.step}", record.step)


def test_severity_is_earned_a_fact_is_info_while_the_loss_falls_and_critical_when_it_rises(make_record):
    falls, stays = Diagnosis([Steep()]), Diagnosis([Steep()])
    told = {"falls": [], "stays": []}
    for step in range(40):
        told["falls"] += [f.severity for f in falls.observe(make_record(step, loss=2.0 * 0.95**step))]
        told["stays"] += [f.severity for f in stays.observe(make_record(step, loss=2.0 + 0.01 * (step % 2)))]
    assert told == {"falls": ["warning", "info"], "stays": ["warning", "critical"]}


def test_a_resumed_diagnosis_finds_bit_for_bit_what_it_would_have_found(make_record, tmp_path):
    def records():
        for step in range(40):
            loss = 2.0 + 0.1 * step if step > 20 else 2.0
            verdict = "skipped" if step in (7, 17, 27) else "ok"
            cause = "nan" if verdict == "skipped" else None
            yield make_record(step, loss=loss, total_norm=1.5**step, verdict=verdict, cause=cause, batch=step % 10)

    whole, first, second = Diagnosis(default_rules()), Diagnosis(default_rules()), Diagnosis(default_rules())
    expected = [whole.observe(record) for record in records()]
    assert any(expected)
    for at, record in enumerate(records()):
        half = first if at < 18 else second
        if at == 18:
            torch.save(first.state_dict(), tmp_path / "state.pt")
            second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert half.observe(record) == expected[at]
    assert second.findings == whole.findings
    assert second.cleared == whole.cleared


def test_a_rule_that_remembers_what_no_checkpoint_holds_is_refused_by_name(make_record):
    class Odd(Counts):
        def __init__(self):
            self.seen = 0
            self.function = print

    diagnosis = Diagnosis([Odd()])
    diagnosis.observe(make_record())
    with pytest.raises(TypeError, match="builtin_function_or_method cannot go into a checkpoint"):
        diagnosis.state_dict()


def test_records_that_are_not_finite_enter_no_rule_that_did_not_ask_for_them(make_record):
    diagnosis = Diagnosis([Counts()])
    for step in range(3):
        diagnosis.observe(make_record(step, verdict="overflow", total_norm=float("inf")))
    assert diagnosis.findings == []


def test_bad_batches_are_counted_on_with_the_batches_that_come_back(make_record):
    diagnosis = Diagnosis(default_rules())
    told = []
    for step in range(100):
        bad = step % 20 in (6, 7)
        more = {"verdict": "skipped", "cause": "nan", "num_nonfinite": 1, "total_norm": float("nan")} if bad else {}
        record = make_record(step, loss=0.98**step, batch=step % 20, epoch=step // 20, nonfinite_layers=("a",), **more)
        told += diagnosis.observe(record)
    (finding,) = diagnosis.findings
    assert {f.rule for f in told} == {"bad-batches"}
    assert finding.severity == "warning"
    assert finding.message.startswith(
        "10 of 100 steps were not finite, the first at step 6, the last at 87: the gradient"
    )
    assert "They come back in each epoch at batches 6, 7." in finding.message
    assert finding.remedies[0] == "look at the data of the bad batch: batches 6, 7"
