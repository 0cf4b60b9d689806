"""Takes the state of every random number generator a training step may use, and puts it back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

RngState = dict[str, Any]


def _torch_state() -> RngState:
    state: RngState = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _numpy_state() -> tuple[Any, ...]:
    state: tuple[Any, ...] = sys.modules["numpy"].random.get_state()
    return state


def _same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    # The position moves with every number drawn, and the numbers change when it comes round.
    return all(bool((a == b).all()) if hasattr(a, "all") else a == b for a, b in zip(left, right, strict=True))


_SLOW: dict[str, Callable[[], tuple[Any, ...]]] = {"random": random.getstate, "numpy": _numpy_state}


def capture_rng() -> RngState:
    """Returns the generators of torch (CPU and each accelerator in use), Python and, where it is imported, NumPy."""
    return _torch_state() | {name: read() for name, read in _SLOW.items() if name in sys.modules}


class RngWatch:
    """Captures the generators before every batch, and spares itself those that nobody uses.

    Reading Python's state takes some 20 µs and NumPy's 80, torch's 3. So the slow ones are read before batches
    1, 2, 4, 8 … and every 128, and only from the moment on that one is seen to have moved before every batch.
    """

    def __init__(self) -> None:
        self._last: RngState = {}
        self._in_use: set[str] = set()
        self._count = 0

    def capture(self) -> RngState:
        """Returns the present state of every generator, as :func:`capture_rng` does."""
        self._count += 1
        is_due = self._count & (self._count - 1) == 0 or self._count % 128 == 0
        for name, read in _SLOW.items():
            if (is_due or name in self._in_use) and name in sys.modules:
                now = read()
                if name in self._last and not _same(self._last[name], now):
                    self._in_use.add(name)
                self._last[name] = now
        return _torch_state() | self._last


@contextmanager
def keeping_generators() -> Iterator[None]:
    """Puts every generator back at the end, whatever was drawn in between."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


def restore_rng(state: RngState) -> None:
    """Puts back what :func:`capture_rng` took; generators that this machine does not have are left out."""
    # No host sync: torch keeps these states on the CPU, those of CUDA as well, unless whoever loaded them moved them.
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one.cpu(), index)
    if "numpy" in state and "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, numpy.asarray(keys, dtype="uint32"), position, has_gauss, cached))
