"""What every probe of the forward pass is: attached before it on sampled steps, gone after it."""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from typing import Any

from lightning_gradguard.harmless.part import Part

EARLY = frozenset([0, *(2**k for k in range(7))])  # 0, 1, 2, 4 … 64: by then what is certain has been said


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


@functools.cache
def early_steps(every_n_steps: int) -> frozenset[int]:
    """Returns 0, 1, 2, 4, 8 … up to 64 and below the interval: runs break there."""
    return EARLY | {2**k for k in range(every_n_steps.bit_length()) if 2**k < every_n_steps}


def next_early(step: int) -> int:
    """Returns the first of the early steps 0, 1, 2, 4 … 64 after ``step``; after 64 a number that is never reached."""
    return min((early for early in EARLY if early > step), default=sys.maxsize)


def is_sampled(step: int, every_n_steps: int) -> bool:
    """Tells whether a step is sampled: regularly, and early ones more often."""
    return step % every_n_steps == 0 or step in early_steps(every_n_steps)
