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
    from lightning_gradguard.clip.adagc import AdaGC as AdaGC
    from lightning_gradguard.clip.agc import AGC as AGC
    from lightning_gradguard.clip.answer import Clip as Clip
    from lightning_gradguard.clip.autoclip import AutoClip as AutoClip
    from lightning_gradguard.clip.base import ClipPolicy as ClipPolicy
    from lightning_gradguard.clip.chain import Chain as Chain
    from lightning_gradguard.clip.maxclip import MaxClip as MaxClip
    from lightning_gradguard.clip.norm import NormClip as NormClip
    from lightning_gradguard.clip.quantile import QuantileClip as QuantileClip
    from lightning_gradguard.clip.value import ValueClip as ValueClip
    from lightning_gradguard.clip.zclip import ZClip as ZClip
    from lightning_gradguard.diagnose import default_rules as default_rules
    from lightning_gradguard.diagnose.diagnosis import Diagnosis as Diagnosis
    from lightning_gradguard.diagnose.diagnosis import Rule as Rule
    from lightning_gradguard.guard.guard import NonFiniteGradientError as NonFiniteGradientError
    from lightning_gradguard.hindsight.table import WhatIf as WhatIf
    from lightning_gradguard.hindsight.table import whatif as whatif
    from lightning_gradguard.incident.replay import ReplayReport as ReplayReport
    from lightning_gradguard.incident.replay import replay as replay
    from lightning_gradguard.measurement.layout import Layout as Layout
    from lightning_gradguard.measurement.measurement import Measurement as Measurement
    from lightning_gradguard.measurement.measurement import measure as measure
    from lightning_gradguard.pipeline import GradientPipeline as GradientPipeline
    from lightning_gradguard.probes.probes import Instruments as Instruments
    from lightning_gradguard.probes.recurrence import TemporalProbe as TemporalProbe
    from lightning_gradguard.record import Finding as Finding
    from lightning_gradguard.record import StepRecord as StepRecord
    from lightning_gradguard.report.live import ConsoleSink as ConsoleSink
    from lightning_gradguard.report.run import Run as Run
    from lightning_gradguard.report.run import read_run as read_run
    from lightning_gradguard.sinks import JsonlSink as JsonlSink
    from lightning_gradguard.sinks import MemorySink as MemorySink
    from lightning_gradguard.sinks import Sink as Sink
    from lightning_gradguard.sinks import read_jsonl as read_jsonl
    from lightning_gradguard.spikes import SpikeRule as SpikeRule
    from lightning_gradguard.tensorboard.sink import TensorBoardSink as TensorBoardSink

_HOME = {
    "AGC": "clip.agc",
    "AdaGC": "clip.adagc",
    "AdaptiveGradientClipping": "callbacks",
    "AutoClip": "clip.autoclip",
    "Chain": "clip.chain",
    "Clip": "clip.answer",
    "ClipPolicy": "clip.base",
    "ConsoleSink": "report.live",
    "Diagnosis": "diagnose.diagnosis",
    "Finding": "record",
    "GradGuard": "callbacks",
    "GradientNormMonitor": "callbacks",
    "GradientPipeline": "pipeline",
    "Instruments": "probes.probes",
    "JsonlSink": "sinks",
    "Layout": "measurement.layout",
    "MaxClip": "clip.maxclip",
    "Measurement": "measurement.measurement",
    "MemorySink": "sinks",
    "NonFiniteGradientError": "guard.guard",
    "NonFiniteGuard": "callbacks",
    "NormClip": "clip.norm",
    "QuantileClip": "clip.quantile",
    "ReplayReport": "incident.replay",
    "Rule": "diagnose.diagnosis",
    "Sink": "sinks",
    "Run": "report.run",
    "SpikeRule": "spikes",
    "StepRecord": "record",
    "TemporalProbe": "probes.recurrence",
    "TensorBoardSink": "tensorboard.sink",
    "ValueClip": "clip.value",
    "WhatIf": "hindsight.table",
    "ZClip": "clip.zclip",
    "default_rules": "diagnose",
    "measure": "measurement.measurement",
    "read_jsonl": "sinks",
    "read_run": "report.run",
    "replay": "incident.replay",
    "whatif": "hindsight.table",
}

__all__ = sorted(_HOME)


if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
