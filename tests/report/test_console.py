"""The table at the end says what was seen and what was found."""

import io

import pytest
from rich.console import Console

from lightning_gradguard.record import Finding
from lightning_gradguard.report.console import summary

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


def shown(*arguments, **options):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(*arguments, **options))
    return console.export_text()


def test_every_layer_has_its_median_its_bar_and_its_findings(make_record):
    records = [make_record(i, layer_norms=(1e-6, 1e-4, 0.01 * i, 0.0, None, 1.0)) for i in range(1, 6)]
    lines = {line.split()[0]: line for line in shown(records, [FINDING]).splitlines() if line.strip()}
    assert "5 records to step 5" in lines["Gradients,"]
    assert "1.00e-06" in lines["a"]
    assert "█" not in lines["a"]
    assert "vanishing-over-depth" in lines["a"]
    assert "vanishing-over-depth" not in lines["c"]
    assert "3.00e-02" in lines["c"], "the median over the records"
    assert "zero" in lines["d"]
    assert "no gradient" in lines["e"]
    assert lines["head"].count("█") == 24


def test_findings_are_told_in_words_with_remedies_in_order(make_record):
    text = shown([make_record()], [FINDING])
    assert "critical: vanishing-over-depth (since step 40, held for 7 records)" in text
    assert text.index("1. add normalization") < text.index("2. initialize")
    assert "docs/diagnosis.md#vanishing-over-depth" in text


def test_layers_come_in_the_order_of_the_forward_pass(make_record):
    text = shown([make_record(depth=(5, 4, 3, 2, 1, 0))], [])
    assert text.index("head") < text.index("\n  a ")


def test_a_finding_about_all_layers_is_not_repeated_at_each(make_record):
    record = make_record()
    finding = Finding("updates-too-large", "critical", "a jump", 1, layers=record.layers)
    assert shown([record], [finding]).count("updates-too-large") == 2, "once as the title, once as the anchor"


def test_a_big_model_is_shortened_and_keeps_the_layers_of_findings(make_record):
    layers = tuple(f"layer{i}" for i in range(500))
    finding = Finding("zero-gradient", "critical", "zero", 1, layers=("layer123",))
    text = shown([make_record(layers=layers)], [finding], max_layers=10)
    assert "layer123" in text
    assert "layer0 " in text
    assert "layer499" in text
    assert "490 more layers are not shown" in text


def test_each_optimizer_has_its_table(make_record):
    records = [make_record(optimizer=i, num_optimizers=2) for i in (0, 1)]
    text = shown(records, [])
    assert "Gradients of optimizer 0" in text
    assert "Gradients of optimizer 1" in text


def test_names_with_brackets_are_shown_as_they_are(make_record):
    assert "[bold]x" in shown([make_record(layers=("[bold]x",))], [])


def test_a_run_without_records_has_no_table():
    assert shown([], []).strip() == ""


def test_a_bad_bound_is_refused():
    with pytest.raises(ValueError, match="max_layers must be at least 1, got 0"):
        summary([], [], max_layers=0)
