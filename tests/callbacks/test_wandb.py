"""Weights & Biases, offline: a real logger that is not TensorBoard's gets the same numbers."""

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from lightning_gradguard import GradGuard, NormClip
from tests.models import Regression, batches


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_gradients_reach_weights_and_biases(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb

    logger = WandbLogger(save_dir=tmp_path, offline=True, project="gradguard")
    guard = GradGuard(clip=NormClip(0.5))
    fast = Regression(optimizer=lambda params: torch.optim.SGD(params, lr=3.0))
    make_trainer(callbacks=[guard], logger=logger).fit(fast, batches())
    summary = dict(logger.experiment.summary)
    table = summary["gradguard/findings"]
    wandb.finish()
    assert summary["grad_norm/net.0"] == pytest.approx(guard.records[-1].layer_norms[0])
    assert summary["gradguard/verdict"].startswith(("critical: ", "warning: "))
    assert table["_type"] == "table-file" and table["nrows"] == len(guard.findings)
    assert len(list(tmp_path.rglob("gradguard.jsonl"))) == 1
    assert summary["grad_norm_total/post_clip"] == pytest.approx(0.5, rel=1e-4)
