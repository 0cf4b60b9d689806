"""The table: over policies, for each optimizer, as text, HTML, Markdown and rows."""

from __future__ import annotations

import pytest

from lightning_gradguard import NormClip, ValueClip, whatif

NORMS = (1.0, 1.1, 0.9, 1.0, 1.2, 40.0, 1.0, 0.8) * 10


@pytest.fixture
def records(make_record):
    return [make_record(79, num_steps=80, total_norms=NORMS)]


def test_it_has_the_usual_policies_the_recommended_one_and_those_asked_for(records):
    table = whatif(records, ["NormClip(5.0)", NormClip(7.0), "ZClip()"], name="first")
    names = [row["policy"] for row in table.rows()]
    assert names[:4] == ["NormClip(max_norm=1.0)", "ZClip()", "AutoClip()", "QuantileClip()"]
    assert names[-2:] == ["NormClip(max_norm=5.0)", "NormClip(max_norm=7.0)"]
    assert len(set(names)) == len(names)
    text = str(table)
    assert text.startswith("first: 80 steps, norm 1 in the median, 40 at most")
    assert "NormClip(1.0) clips" in text and "\nRecommended: " in text
    assert max(map(len, text.splitlines())) <= 120


def test_html_and_markdown_say_the_same(records):
    table = whatif(records, name="<first>")
    assert "&lt;first&gt;" in table._repr_html_() and "<th>hardest clips at steps</th>" in table._repr_html_()
    assert table.markdown().count("\n| ") == 2 + len(table.rows())
    assert table.as_json()["optimizers"][0]["policies"][0]["policy"] == "NormClip(max_norm=1.0)"


def test_two_optimizers_have_a_table_each(make_record):
    two = [make_record(79, optimizer=i, num_optimizers=2, num_steps=80, total_norms=NORMS) for i in (0, 1)]
    table = whatif(two)
    assert {row["optimizer"] for row in table.rows()} == {0, 1}
    assert "run, optimizer 1: 80 steps" in str(table)


@pytest.mark.parametrize(
    "change", [{"num_clipped": 3}, {"clip_outside": 0.5, "max_total_norm": 40.0}], ids=["us", "Trainer"]
)
def test_of_a_clipped_run_it_says_that_another_clip_would_have_led_elsewhere(make_record, change):
    record = make_record(79, num_steps=80, total_norms=NORMS, **change)
    assert "another clip would have led elsewhere" in " ".join(str(whatif([record])).split())


def test_it_says_what_it_does_not_know(make_record):
    old = make_record(20, num_steps=21)
    folded = make_record(180, num_steps=160, total_norms=NORMS, steps_per_norm=2)
    text = " ".join(str(whatif([old, folded])).split())
    assert "The norms of 21 steps are not known" in text
    assert "A norm stands for up to 2 steps" in text


@pytest.mark.parametrize(
    ("policies", "words"),
    [([ValueClip(1.0)], "ValueClip\\(max_value=1.0\\) needs"), (["print()"], "is no policy")],
)
def test_what_cannot_be_tried_is_refused(records, policies, words):
    with pytest.raises(ValueError, match=words):
        whatif(records, policies)


def test_records_without_norms_are_refused(make_record):
    with pytest.raises(ValueError, match="old has no total norms of its steps"):
        whatif([make_record(1)], name="old")
