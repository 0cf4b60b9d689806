"""Weights & Biases, offline: a real logger that is not TensorBoard's gets the same numbers."""

import pytest
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
    make_trainer(callbacks=[guard], logger=logger).fit(Regression(), batches())
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert summary["grad_norm/net.0"] == pytest.approx(guard.records[-1].layer_norms[0])
    assert summary["grad_norm_total/post_clip"] == pytest.approx(0.5, rel=1e-4)
