"""The words at the end of training and of ``report``: what was seen, what was found, what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gradguard.record import Finding
from lightning_gradguard.report.console import as_text, show_run, show_table
from lightning_gradguard.report.picture import pictures_of
from lightning_gradguard.report.summary import Summary, summarize

FINDING = Finding(
    rule="vanishing-over-depth",
    severity="critical",
    message="the gradient falls by 5.0 decades.",
    step=40,
    layers=("a", "b"),
    causes=("too small",),
    remedies=("add normalization", "initialize"),
    count=7,
)


def summary_of(records: Any) -> Summary:
    (picture,) = pictures_of(records, "run")
    return summarize(picture)


def shown(records: Any, width: int = 80, **options: Any) -> str:
    return as_text(show_run(summary_of(records), **{"title": "run:", **options}), width)


def rows(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_every_layer_has_its_median_and_its_bar(make_record):
    records = [make_record(i, layer_norms=(1e-6, 1e-4, 0.01 * i, 0.0, None, 1.0)) for i in range(1, 6)]
    records = [make_record(r.step, layer_norms=r.layer_norms, max_layer_norms=r.layer_norms) for r in records]
    records.append(make_record(6, layer_norms=records[2].layer_norms, findings=(FINDING,)))
    lines = rows(shown(records))
    assert "1.00e-06" in lines["a"]
    assert "█" not in lines["a"]
    assert "3.00e-02" in lines["c"], "the median over the records"
    assert "zero" in lines["d"]
    assert "no gradient" in lines["e"]
    assert lines["head"].count("█") == 24


def test_findings_are_told_in_words_with_remedies_in_order(make_record):
    text = shown([make_record(40, findings=(FINDING,))])
    assert "critical vanishing-over-depth (since step 40, held for 7 records)" in text
    assert text.index("likely: too small") < text.index("1. add normalization") < text.index("2. initialize")


def test_in_short_there_is_one_remedy_and_at_most_five_findings(make_record):
    findings = tuple(Finding(f"rule{i}", "warning", "words", 1, remedies=("first", "second")) for i in range(7))
    text = shown([make_record(findings=findings)], short=True)
    assert text.count("try: first") == 5 and "second" not in text
    assert "and rule5, rule6" in text


def test_a_finding_that_is_over_says_so(make_record):
    assert "held for 7 records, now over)" in shown(
        [make_record(findings=(FINDING,))], cleared=("vanishing-over-depth",)
    )
    since = replace(FINDING, until=64)
    text = shown([make_record(findings=(since,))], cleared=("vanishing-over-depth",))
    assert "over since step 64)" in " ".join(text.split())


def test_a_healthy_run_is_one_line_and_has_nothing_to_report(make_record):
    text = shown([make_record(i, coefficient=1.0, min_coefficient=1.0) for i in range(5)])
    assert text == "run: 5 steps, none clipped, none skipped, no spike. Nothing to report."


def test_what_was_clipped_and_skipped_is_counted_with_its_share(make_record):
    records = [make_record(i, num_steps=10, num_clipped=5, min_coefficient=0.5) for i in range(3)]
    records.append(make_record(3, verdict="skipped", cause="nan", num_nonfinite=1, skipped_total=1, num_steps=10))
    text = shown(records, width=120)
    assert text == "run: 40 steps, 15 clipped (38 %), 1 not finite and skipped (2.5 %), no spike."


def test_layers_come_in_the_order_of_the_forward_pass(make_record):
    norms = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
    record = make_record(depth=(5, 4, 3, 2, 1, 0), layer_norms=norms, max_layer_norms=norms, findings=(FINDING,))
    text = shown([record])
    assert text.index(" head ") < text.index("\n a ")


def test_a_big_model_is_shortened_and_keeps_the_layers_of_findings(make_record):
    layers = tuple(f"layer{i}" for i in range(500))
    finding = Finding("zero-gradient", "critical", "zero", 1, layers=("layer123",))
    norms = tuple(1.0 / (i + 1) for i in range(500))
    text = shown([make_record(layers=layers, layer_norms=norms, findings=(finding,))])
    assert {"layer123", "layer0", "layer499"} <= set(rows(text))
    assert "488 more layers are not shown" in text


def test_names_with_brackets_are_shown_as_they_are(make_record):
    norms = (0.0, 1.0)
    record = make_record(layers=("[bold]x", "y"), layer_norms=norms, max_layer_norms=norms, findings=(FINDING,))
    assert "[bold]x" in shown([record])


def test_a_flat_profile_says_nothing_and_is_left_out(make_record):
    assert "layer, input first" not in shown([make_record(findings=(FINDING,))])


def test_many_runs_are_a_table_with_a_verdict_each(make_record):
    sick = summary_of([make_record(40, findings=(FINDING, FINDING))])
    ill = summary_of([make_record(40, verdict="nonfinite", cause="nan", num_nonfinite=1)])
    text = as_text(show_table([sick, ill, summary_of([make_record()])]), 100)
    assert "critical: vanishing-over-depth" in text
    assert "1 step not finite" in text
    assert "nothing to report" in text


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_it_may_be(make_record, width):
    layers = tuple(f"a.very.long.name.of.a.layer.in.a.deep.model.number{i}" for i in range(6))
    norms = tuple(10.0**-i for i in range(6))
    text = shown([make_record(layers=layers, layer_norms=norms, findings=(FINDING,))], width=width)
    assert "number5" in text
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
