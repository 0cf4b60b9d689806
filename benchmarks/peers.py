"""What else watches or clips gradients, where it is installed: pip install timm zclip wandb."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import grad_norm


class BeforeStep(Callback):
    """Runs a function before each optimizer step."""

    def __init__(self, function: Callable[[pl.Trainer, pl.LightningModule], Any]) -> None:
        self.function = function

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.function(trainer, pl_module)


def in_hooks() -> dict[str, Callable[[], list[Callback]]]:
    """Peers whose cost lies in a hook of the Trainer, by name."""
    found: dict[str, Callable[[], list[Callback]]] = {}
    if (agc := timm_agc()) is not None:
        found["timm's adaptive_clip_grad"] = lambda: [BeforeStep(lambda _, module: agc(module.parameters()))]
    if importlib.util.find_spec("zclip") is not None:
        found["ZClip's own callback"] = _zclip
    found["`.item()` and `add_scalar` per parameter"] = lambda: [BeforeStep(_item_and_add_scalar)]
    found["`isfinite().all()` per parameter"] = lambda: [BeforeStep(_isfinite_each)]
    return found


Around = Callable[[pl.LightningModule], AbstractContextManager[Any]]


def around_fit() -> dict[str, tuple[list[Callback], Around]]:
    """Peers that act outside of hooks too, by name: callbacks, and what is set up around a fit."""
    found: dict[str, tuple[list[Callback], Around]] = {
        "`log_dict(grad_norm(self, 2))`, Lightning's recipe": ([BeforeStep(_recipe)], _nothing),
        "`detect_anomaly=True`": ([_DetectAnomaly()], _nothing),
    }
    if importlib.util.find_spec("wandb") is not None:
        found["`wandb.watch(log_freq=1)`, offline"] = ([], _wandb_watch)
    return found


def timm_agc() -> Callable[..., None] | None:
    """timm's function; by its file where the package cannot be imported, for want of torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return None
    source = importlib.util.spec_from_file_location("timm_agc", Path(spec.origin).parent / "utils" / "agc.py")
    assert source is not None and source.loader is not None
    module: ModuleType = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module.adaptive_clip_grad  # type: ignore[no-any-return]


def _zclip() -> list[Callback]:
    from zclip import ZClip

    clipper = ZClip()
    return [BeforeStep(lambda _, module: clipper.step(module))]  # all that its Lightning callback does


def _item_and_add_scalar(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    writer: Any = trainer.logger.experiment  # type: ignore[union-attr]
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            writer.add_scalar(f"norms/{name}", parameter.grad.norm().item(), trainer.global_step)


def _isfinite_each(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise RuntimeError(name)


def _recipe(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    module.log_dict(grad_norm(module, norm_type=2))


@contextmanager
def _nothing(module: pl.LightningModule) -> Any:
    yield


class _DetectAnomaly(Callback):
    """What ``Trainer(detect_anomaly=True)`` does: set inside of fit, where the Trainer has its own say."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.autograd.set_detect_anomaly(True)


@contextmanager
def _wandb_watch(module: pl.LightningModule) -> Any:
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="overhead", settings=wandb.Settings(silent=True))
        run.watch(module, log="gradients", log_freq=1)
        yield
        run.unwatch(module)
        run.finish()
