"""What every probe of the forward pass is: attached before it on sampled steps, gone after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning_gradguard.harmless.part import Part

_LAST_EARLY = 64  # by then what is certain has been said


class SampledProbe(ABC):
    """Looks at the forward pass of sampled steps, through hooks that live no longer than it.

    Attributes:
        part: its guard; hooks are attached through it.
    """

    part: Part

    @abstractmethod
    def start(self, step: int) -> bool:
        """Attaches the hooks if the step is sampled; call it before the forward pass. Tells whether it did."""

    @abstractmethod
    def stop(self) -> None:
        """Removes the hooks; call it after the forward pass."""

    @abstractmethod
    def take(self) -> Any:
        """Returns what was seen since the last call, for the record; ``None`` without a new sample."""


def is_sampled(step: int, every_n_steps: int) -> bool:
    """Whether a step is sampled: regularly, and 0, 1, 2, 4, 8 … up to 64 and below the interval: runs break there."""
    return step % every_n_steps == 0 or is_early(step) or (step < every_n_steps and _is_power(step))


def is_early(step: int) -> bool:
    """Whether a step is one of 0, 1, 2, 4, 8 … 64."""
    return step <= _LAST_EARLY and _is_power(step)


def _is_power(step: int) -> bool:
    return step & (step - 1) == 0
