"""Two records as one: counts add up, the worst of each stays."""

from __future__ import annotations

from lightning_gradguard.record import Finding
from lightning_gradguard.report.folded import fold, halved


def test_norms_take_the_largest_and_coefficients_the_smallest(make_record):
    earlier = make_record(1, layers=("a", "b"), max_layer_norms=(3.0, None), min_coefficient=0.5, loss=1.0)
    later = make_record(2, layers=("a", "b"), max_layer_norms=(1.0, 2.0), min_coefficient=None, loss=4.0, num_steps=2)
    folded = fold(earlier, later)
    assert folded.step == 2
    assert folded.max_layer_norms == (3.0, 2.0)
    assert folded.min_coefficient == 0.5
    assert folded.loss == 3.0


def test_a_bad_step_is_not_hidden_by_a_good_one_after_it(make_record):
    bad = make_record(1, verdict="skipped", cause="nan", nonfinite_layers=("a",), total_norm=float("nan"))
    folded = fold(bad, make_record(2))
    assert (folded.verdict, folded.cause, folded.nonfinite_layers) == ("skipped", "nan", ("a",))


def test_findings_of_both_are_kept(make_record):
    first, second = (Finding(f"rule{i}", "info", "words", i) for i in (1, 2))
    assert fold(make_record(1, findings=(first,)), make_record(2, findings=(second,))).findings == (first, second)


def test_what_only_the_earlier_one_measured_is_kept(make_record):
    assert fold(make_record(1, weight_norms=(7.0,) * 6), make_record(2, weight_norms=None)).weight_norms == (7.0,) * 6


def test_halving_leaves_the_odd_one(make_record):
    assert [r.num_steps for r in halved([make_record(i) for i in range(5)], keep_notable=True)] == [2, 2, 1]


def test_total_norms_follow_each_other_while_there_is_room_and_then_keep_every_peak(make_record):
    norms = [float(i % 97) for i in range(1000)]
    records = [make_record(i, num_steps=50, total_norms=tuple(norms[50 * i : 50 * i + 50])) for i in range(20)]
    whole = records[0]
    for record in records[1:]:
        whole = fold(whole, record)
        assert len(whole.total_norms) <= 256
    assert max(whole.total_norms) == 96.0
    assert len(whole.total_norms) * whole.steps_per_norm >= 1000
    assert fold(records[0], records[1]).total_norms == tuple(norms[:100])


def test_a_record_of_an_older_version_brings_no_norms(make_record):
    assert fold(make_record(1), make_record(2)).total_norms is None
    assert fold(make_record(1), make_record(2, total_norms=(1.0,), steps_per_norm=2)).steps_per_norm == 2
