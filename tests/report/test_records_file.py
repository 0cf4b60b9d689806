"""The file of records: the same as JsonlSink's while it is small, and small however long the run."""

from __future__ import annotations

import pytest

from lightning_gradguard.record import Finding
from lightning_gradguard.report.records_file import RecordsFile
from lightning_gradguard.sinks import read_jsonl

FINDING = Finding("vanishing-over-depth", "critical", "words", 7)


def written(path, records, **options):
    sink = RecordsFile(path, **options)
    for record in records:
        sink.write(record)
    sink.close()
    return list(read_jsonl(path))


def test_a_short_run_is_kept_record_by_record(tmp_path, make_record):
    records = [make_record(step) for step in range(50)]
    assert written(tmp_path / "run" / "gradguard.jsonl", records) == records


@pytest.mark.parametrize("num_records", [1_000, 5_000])
def test_a_long_run_stays_within_its_bytes_and_loses_no_step_and_no_spike(tmp_path, make_record, num_records):
    path = tmp_path / "gradguard.jsonl"
    records = [
        make_record(step, num_steps=5, num_clipped=2, max_total_norm=99.0 if step == 321 else 0.25)
        for step in range(num_records)
    ]
    kept = written(path, records, max_bytes=100_000)
    assert path.stat().st_size <= 100_000
    assert len(kept) > 20
    assert sum(record.num_steps for record in kept) == 5 * num_records
    assert sum(record.num_clipped for record in kept) == 2 * num_records
    assert max(record.max_total_norm for record in kept) == 99.0
    assert kept[-1].step == num_records - 1
    assert [record.step for record in kept] == sorted({record.step for record in kept})


def test_what_happened_stays_by_itself_and_is_written_at_once(tmp_path, make_record):
    path = tmp_path / "gradguard.jsonl"
    sink = RecordsFile(path, max_bytes=50_000)
    for step in range(400):
        sink.write(make_record(step))
    sink.write(make_record(400, verdict="skipped", cause="nan", nonfinite_layers=("a",), findings=(FINDING,)))
    last = list(read_jsonl(path))[-1]  # though nobody closed it
    assert (last.step, last.verdict, last.findings) == (400, "skipped", (FINDING,))
    for step in range(401, 2000):
        sink.write(make_record(step))
    sink.close()
    kept = {record.step: record for record in read_jsonl(path)}
    assert kept[400].verdict == "skipped" and kept[400].num_steps == 1


def test_a_run_of_bad_steps_only_stays_within_its_bytes_too(tmp_path, make_record):
    path = tmp_path / "gradguard.jsonl"
    bad = [make_record(step, verdict="skipped", cause="nan", num_nonfinite=1) for step in range(1000)]
    kept = written(path, bad, max_bytes=50_000)
    assert path.stat().st_size <= 50_000
    assert sum(record.num_nonfinite for record in kept) == 1000
    assert {record.verdict for record in kept} == {"skipped"}


def test_two_optimizers_and_a_change_of_layers_are_not_mixed(tmp_path, make_record):
    records = [
        make_record(step, optimizer=index, num_optimizers=2, layers=("a", "b") if step > 300 else ("a",))
        for step in range(600)
        for index in (0, 1)
    ]
    kept = written(tmp_path / "gradguard.jsonl", records, max_bytes=60_000)
    for optimizer in (0, 1):
        own = [record for record in kept if record.optimizer == optimizer]
        assert sum(record.num_steps for record in own) == 600
        assert sum(record.num_steps for record in own if record.layers == ("a",)) == 301


def test_a_run_that_goes_on_continues_its_file(tmp_path, make_record):
    path = tmp_path / "gradguard.jsonl"
    written(path, [make_record(0)])
    assert [record.step for record in written(path, [make_record(1)])] == [0, 1]


def test_a_bad_bound_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        RecordsFile(tmp_path / "x", max_bytes=0)
