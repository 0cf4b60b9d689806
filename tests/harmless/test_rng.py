"""Every generator a step may use is taken and put back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lightning_gradguard.harmless import rng
from lightning_gradguard.harmless.rng import RngWatch, capture_rng, restore_rng
from lightning_gradguard.incident.codec import encode
from lightning_gradguard.incident.decode import decode

legacy = np.random.mtrand._rand  # the global generator that np.random.rand and its kin draw from


def draw():
    return torch.rand(1).item(), random.random(), legacy.rand(), random.gauss(0, 1), legacy.randn()


@pytest.mark.parametrize("through_encoding", [False, True])
def test_what_was_captured_comes_back(through_encoding):
    draw()
    state = capture_rng()
    expected = draw()
    restore_rng(decode(encode(state)) if through_encoding else state)
    assert draw() == expected


def is_exact(state):
    whole = capture_rng()
    pairs = [pair for name in ("random", "numpy") for pair in zip(state[name], whole[name], strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("used", [(), ("numpy",), ("random",), ("numpy", "random")], ids=lambda used: "+".join(used))
def test_a_watch_captures_the_same_although_it_reads_the_slow_ones_seldom(used):
    watch = RngWatch()
    for batch in range(300):
        assert is_exact(watch.capture()), batch
        if "numpy" in used:
            legacy.rand()
        if "random" in used:
            random.random()


def test_a_generator_that_comes_into_use_late_is_noticed_within_128_batches():
    watch = RngWatch()
    for batch in range(1, 400):
        state = watch.capture()
        assert is_exact(state) or 300 < batch < 384, batch
        if batch >= 300:
            legacy.rand()


def test_generators_that_nobody_uses_are_read_seldom(monkeypatch):
    reads = []
    monkeypatch.setitem(rng._SLOW, "numpy", lambda: reads.append(1) or legacy.get_state())
    watch = RngWatch()
    for _ in range(1000):
        watch.capture()
    assert len(reads) == 10 + 7 - 3  # powers of two up to 512, multiples of 128 up to 896, less those that are both
