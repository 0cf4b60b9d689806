"""Takes the state of every random number generator a training step may use, and puts it back."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

RngState = dict[str, Any]


def capture_rng() -> RngState:
    """The generators of torch (CPU and each accelerator in use), Python and, where it is imported, NumPy.

    Tensors, numbers, lists and tuples only, so that ``torch.load(weights_only=True)`` reads it. Costs some 20 µs.
    """
    state: RngState = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        name, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        state["numpy"] = (name, keys, position, has_gauss, cached)
    return state


def restore_rng(state: RngState) -> None:
    """Puts back what :func:`capture_rng` took; generators that this machine does not have are left out."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one.cpu(), index)
    if "numpy" in state and "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, numpy.asarray(keys, dtype="uint32"), position, has_gauss, cached))
