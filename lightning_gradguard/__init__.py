"""See, tame and survive gradients in PyTorch Lightning.

Every public name is imported on first use, so that importing the package costs nothing: TensorBoard loads our tab in
every process it starts, and would otherwise wait for torch and lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_gradguard.callbacks import AdaptiveGradientClipping as AdaptiveGradientClipping
    from lightning_gradguard.callbacks import GradGuard as GradGuard
    from lightning_gradguard.callbacks import GradientNormMonitor as GradientNormMonitor
    from lightning_gradguard.callbacks import NonFiniteGuard as NonFiniteGuard
    from lightning_gradguard.clip.autoclip import AutoClip as AutoClip
    from lightning_gradguard.clip.base import Clip as Clip
    from lightning_gradguard.clip.base import ClipPolicy as ClipPolicy
    from lightning_gradguard.clip.norm import NormClip as NormClip
    from lightning_gradguard.clip.value import ValueClip as ValueClip
    from lightning_gradguard.clip.zclip import ZClip as ZClip
    from lightning_gradguard.diagnose.base import Rule as Rule
    from lightning_gradguard.guard import NonFiniteGradientError as NonFiniteGradientError
    from lightning_gradguard.layout import Layout as Layout
    from lightning_gradguard.measure import Measurement as Measurement
    from lightning_gradguard.measure import measure as measure
    from lightning_gradguard.pipeline import GradientPipeline as GradientPipeline
    from lightning_gradguard.record import Finding as Finding
    from lightning_gradguard.record import JsonlSink as JsonlSink
    from lightning_gradguard.record import MemorySink as MemorySink
    from lightning_gradguard.record import Sink as Sink
    from lightning_gradguard.record import StepRecord as StepRecord
    from lightning_gradguard.record import read_jsonl as read_jsonl
    from lightning_gradguard.tensorboard.sink import TensorBoardSink as TensorBoardSink

_HOME = {
    "AdaptiveGradientClipping": "callbacks",
    "AutoClip": "clip.autoclip",
    "Clip": "clip.base",
    "ClipPolicy": "clip.base",
    "Finding": "record",
    "GradGuard": "callbacks",
    "GradientNormMonitor": "callbacks",
    "GradientPipeline": "pipeline",
    "JsonlSink": "record",
    "Layout": "layout",
    "Measurement": "measure",
    "MemorySink": "record",
    "NonFiniteGradientError": "guard",
    "NonFiniteGuard": "callbacks",
    "NormClip": "clip.norm",
    "Rule": "diagnose.base",
    "Sink": "record",
    "StepRecord": "record",
    "TensorBoardSink": "tensorboard.sink",
    "ValueClip": "clip.value",
    "ZClip": "clip.zclip",
    "measure": "measure",
    "read_jsonl": "record",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
