import json
import math
import struct
from dataclasses import asdict, fields, replace

import pytest

from lightning_gradguard.record import Finding, Findings, LastWeights, StepRecord
from lightning_gradguard.sinks import JsonlSink, MemorySink, read_jsonl

RECORD = StepRecord(
    step=3,
    optimizer=0,
    num_optimizers=1,
    layers=("nan", "net.2"),
    layer_norms=(math.nan, None),
    total_norm=math.inf,
    post_clip_norm=None,
    threshold=1.0,
    coefficient=0.5,
    cosine=None,
    verdict="skipped",
    nonfinite_layers=("nan",),
    cause="nan",
    loss_scale=None,
    num_steps=1,
    num_clipped=0,
    num_nonfinite=1,
    max_layer_norms=(-math.inf, None),
    max_total_norm=0.0,
    min_coefficient=1.0,
    clip_rate=0.25,
    nonfinite_total=1,
    skipped_total=1,
    findings=(Finding("rule", "warning", "nan", 3, ("inf",), {"slope": math.nan}),),
)


def test_a_record_survives_json_with_its_nan_and_its_layer_called_nan():
    line = RECORD.to_json()
    json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert repr(asdict(StepRecord.from_json(line))) == repr(asdict(RECORD))


@pytest.mark.parametrize("line", ["[]", '{"step": 1}', "3"], ids=["list", "fields missing", "number"])
def test_what_is_no_record_is_refused(line):
    with pytest.raises(ValueError, match="not a StepRecord"):
        StepRecord.from_json(line)


def test_a_record_of_a_newer_version_reads_without_what_is_not_known_here():
    values = json.loads(RECORD.to_json())
    values["version"], values["tomorrow"] = 99, {"deep": ["nan"]}
    values["findings"][0]["mood"] = "calm"
    assert repr(asdict(StepRecord.from_json(json.dumps(values)))) == repr(asdict(RECORD))


@pytest.mark.parametrize("name", [f.name for f in fields(StepRecord)])
def test_a_record_of_another_version_that_lacks_a_field_reads_with_its_default(name):
    values = json.loads(RECORD.to_json())
    del values[name]
    if name in ("step", "layers", "layer_norms", "total_norm", "verdict"):
        with pytest.raises(ValueError, match=f"not a StepRecord: fields that are missing: .'{name}'."):
            StepRecord.from_json(json.dumps(values))
        return
    found = StepRecord.from_json(json.dumps(values))
    assert repr(asdict(replace(found, **{name: getattr(RECORD, name)}))) == repr(asdict(RECORD))


def test_a_line_says_by_which_version_it_was_written():
    assert json.loads(RECORD.to_json())["version"] == 1


def test_the_memory_sink_keeps_the_latest():
    sink = MemorySink(max_records=2)
    for step in range(5):
        sink.write(replace(RECORD, step=step))
    assert [record.step for record in sink.records] == [3, 4]


def test_the_memory_sink_wants_room_for_one():
    with pytest.raises(ValueError, match="max_records must be at least 1, got 0"):
        MemorySink(max_records=0)


def test_a_jsonl_file_is_read_back_and_continued(tmp_path):
    path = tmp_path / "deep" / "gradients.jsonl"
    JsonlSink(path).write(RECORD)
    JsonlSink(path).write(replace(RECORD, step=4))
    assert [record.step for record in read_jsonl(path)] == [3, 4]


def test_a_line_cut_off_by_a_killed_run_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "gradients.jsonl"
    path.write_text(RECORD.to_json() + "\n" + RECORD.to_json()[:40])
    assert len(list(read_jsonl(path))) == 1
    path.write_text("{}\n" + RECORD.to_json() + "\n")
    with pytest.raises(ValueError, match=r"gradients.jsonl, line 1: not a StepRecord"):
        list(read_jsonl(path))


def test_weight_norms_are_filled_in_from_the_last_record_that_has_them():
    last = LastWeights()
    assert last.fill(replace(RECORD, weight_norms=None)).weight_norms is None
    measured = replace(RECORD, weight_norms=(2.0, 1.0))
    assert last.fill(measured) is measured
    assert last.fill(replace(RECORD, weight_norms=None)).weight_norms == (2.0, 1.0)
    assert last.fill(replace(RECORD, weight_norms=None, optimizer=1)).weight_norms is None
    assert last.fill(replace(RECORD, weight_norms=None, layers=("c", "d"))).weight_norms is None


def test_total_norms_come_back_to_the_bit_of_a_float32_and_take_nine_digits():
    norms = (struct.unpack("f", struct.pack("f", 1 / 3))[0], math.nan, math.inf, 0.0, 3.4028234663852886e38)
    record = replace(RECORD, total_norms=norms, steps_per_norm=2)
    line = record.to_json()
    assert '"total_norms": [0.333333343, "nan", "inf", 0.0, ' in line
    assert repr(StepRecord.from_json(line)) == repr(record)


def test_a_record_is_shown_in_a_line_however_many_layers_it_has():
    many = replace(RECORD, layers=("a",) * 1000, layer_norms=(1.0,) * 1000, loss=0.5)
    assert repr(many) == (
        "StepRecord(step=3, optimizer=0, verdict='skipped', total_norm=inf, cause='nan', coefficient=0.5, loss=0.5, "
        "layers=1000, findings=1)"
    )


def test_a_notebook_shows_a_record_in_words_and_names_stay_text():
    html = replace(RECORD, layers=("<i>", "net.2"), nonfinite_layers=("<i>",))._repr_html_()
    assert html.startswith("<p><b>step 3: skipped</b>, norm inf, threshold 1<br>not finite: &lt;i&gt;</p>")
    assert "<b>warning: rule</b>" in html and "<summary>2 layers</summary>" in html
    assert "<td>&lt;i&gt;</td><td>nan</td>" in html and "<td>net.2</td><td>no gradient</td>" in html


def test_a_notebook_shows_findings_with_remedies_in_order_and_until_when_they_held():
    finding = Finding("a-rule", "critical", "<b>words</b>", 3, remedies=("do", "or do"), count=8, until=40)
    assert Findings([finding])._repr_html_() == (
        "<ul><li><b>critical: a-rule</b> (since step 3, held for 8 records, until step 40)<br>&lt;b&gt;words&lt;/b&gt;"
        "<ol><li>do</li><li>or do</li></ol></li></ul>"
    )
    assert Findings()._repr_html_() == "<p>Nothing to report.</p>"
    assert repr(finding).startswith(
        "Finding(rule='a-rule', severity='critical', message='<b>words</b>', step=3, remedies"
    )
