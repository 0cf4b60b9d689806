"""The Lightning surface: the only part of the package that imports lightning."""

from lightning_gradguard.callbacks.clipping import AdaptiveGradientClipping
from lightning_gradguard.callbacks.gradguard import GradGuard
from lightning_gradguard.callbacks.guard import NonFiniteGuard
from lightning_gradguard.callbacks.monitor import GradientNormMonitor

__all__ = ["AdaptiveGradientClipping", "GradGuard", "GradientNormMonitor", "NonFiniteGuard"]
