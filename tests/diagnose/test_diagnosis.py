"""Persistence, clearing, counting, silencing: what Diagnosis does with what rules say."""

import pytest

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


def test_a_finding_clears_itself_and_is_not_reported_again(make_record):
    diagnosis = Diagnosis([WhenLossIsHigh()])
    feed(diagnosis, make_record, [9, 9, 9, 1, 1])
    assert diagnosis.findings
    feed(diagnosis, make_record, [1])
    assert not diagnosis.findings
    assert [f.rule for f in diagnosis.cleared] == ["loss-is-high"]
    assert feed(diagnosis, make_record, [9, 9, 9]) == [[], [], []]
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
    assert sorted(f.message for f in diagnosis.findings if f.rule == "counts") == ["1", "2"]


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
