"""MLflow, in a folder: findings come as an artifact to read and a tag to search by."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger

from lightning_gradguard import GradGuard, read_jsonl
from tests.models import Regression, batches


@pytest.mark.filterwarnings("ignore:.*filesystem tracking backend.*", "ignore::DeprecationWarning")
def test_findings_reach_mlflow(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("gradguard", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    guard = GradGuard()
    make_trainer(callbacks=[guard], logger=logger, max_epochs=2).fit(Regression(), batches())
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.tags["gradguard.verdict"] == "warning: updates-too-large", "it learns: nothing is critical"
    text = (Path(run.info.artifact_uri.removeprefix("file:")) / "gradguard" / "findings.md").read_text()
    assert "updates-too-large" in text and "1. lower the learning rate" in text
    records = tmp_path / "mlruns" / logger.experiment_id / logger.run_id / "gradguard.jsonl"
    assert list(read_jsonl(records)) == guard.records
