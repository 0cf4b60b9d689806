"""For the Trainer of Hugging Face transformers: ``trainer.add_callback(GradGuardCallback(trainer))``."""

from __future__ import annotations

from lightning_gradguard.huggingface.callback import GradGuardCallback

__all__ = ["GradGuardCallback"]
