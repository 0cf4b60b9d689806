"""Records are on disk by default, in the log folder of the run, whatever the logger."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_gradguard import GradGuard, JsonlSink, NormClip, read_jsonl
from lightning_gradguard.report.command import main
from tests.models import Regression, batches


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_they_lie_in_the_loggers_own_folder_and_report_reads_them(make_trainer, tmp_path, kind, capsys):
    logger = kind(tmp_path, name="mine")
    guard = GradGuard(clip=NormClip(0.5))
    make_trainer(callbacks=[guard], logger=logger).fit(Regression(), batches())
    assert list(read_jsonl(Path(logger.log_dir) / "gradguard.jsonl")) == guard.records
    assert main([logger.log_dir, "--out", str(tmp_path / "page.html")]) == 0
    assert "version_0" in capsys.readouterr().out


def test_a_run_with_event_files_beside_its_records_is_reported_once(make_trainer, tmp_path, capsys):
    make_trainer(callbacks=[GradGuard()], logger=TensorBoardLogger(tmp_path)).fit(Regression(), batches())
    main([str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.count("lightning_logs/version_0") <= 2  # its row, and its findings


@pytest.mark.parametrize("options", [{"logger": False}, {"fast_dev_run": True}], ids=["no logger", "fast_dev_run"])
def test_where_nothing_is_kept_nothing_is_written(make_trainer, tmp_path, options):
    make_trainer(callbacks=[GradGuard()], **options).fit(Regression(), batches())
    assert list(tmp_path.rglob("*.jsonl")) == []


@pytest.mark.parametrize("own", [True, False], ids=["a JsonlSink of one's own", "keep_records=False"])
def test_it_can_be_had_elsewhere_or_not_at_all(make_trainer, tmp_path, own):
    guard = GradGuard(sinks=[JsonlSink(tmp_path / "own.jsonl")]) if own else GradGuard(keep_records=False)
    make_trainer(callbacks=[guard], logger=CSVLogger(tmp_path)).fit(Regression(), batches())
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == (["own.jsonl"] if own else [])


def test_the_end_names_the_command_that_reads_them(make_trainer, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "lightning.pytorch.gradguard")
    make_trainer(callbacks=[GradGuard()], logger=TensorBoardLogger("logs dir")).fit(Regression(), batches())
    (*_, end) = (r.getMessage() for r in caplog.records if r.name == "lightning.pytorch.gradguard")
    assert "Report: gradguard report 'logs dir/lightning_logs/version_0'" in end
    assert "Picture: tensorboard --logdir 'logs dir'" in end
