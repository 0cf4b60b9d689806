from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradguard.clip.autoclip import AutoClip
from tests.clip.bench import Run


def test_the_threshold_is_the_percentile_of_the_window() -> None:
    run, norms = Run(AutoClip(percentile=30, window=8)), [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.6, 5.5, 3.5, 8.0, 9.5]
    for count, norm in enumerate(norms, start=1):
        clip, _ = run.at(norm)
        assert float(clip.threshold) == pytest.approx(np.percentile(norms[:count][-8:], 30), rel=1e-5)


def test_the_first_step_is_its_own_threshold_however_small() -> None:
    for norm in (1e-8, 1.0, 1e8):
        clip, _ = Run(AutoClip()).at(norm)
        assert float(clip.coefficient) == 1.0


def test_a_zero_gradient_does_not_pull_the_threshold_down() -> None:
    run = Run(AutoClip(percentile=0))
    for norm in (1.0, 0.0, 1.0):
        clip, _ = run.at(norm)
    assert float(clip.threshold) == pytest.approx(1.0)


def test_a_norm_that_is_not_finite_is_clipped_to_what_is_known() -> None:
    run = Run(AutoClip())
    run.at(1.0)
    clip, _ = run.at(math.inf)
    assert float(clip.threshold) == pytest.approx(1.0)


@pytest.mark.parametrize(("original", "expected"), [(False, 19.0), (True, 1e6)], ids=["ours", "paper"])
def test_how_much_of_an_explosion_is_learned(original: bool, expected: float) -> None:
    run = Run(AutoClip(percentile=100, original=original))
    for norm in (1.0, 1e6):
        clip, _ = run.at(norm)
    assert (float(clip.threshold) > 100.0) == original
    assert float(clip.threshold) <= expected * 1.01


def test_with_the_papers_percentile_nine_steps_in_ten_are_clipped() -> None:
    run, clipped = Run(AutoClip()), 0
    for step in range(300):
        clip, _ = run.at(2.0 + math.sin(step * 2.399963))
        clipped += float(clip.coefficient) < 1.0
    assert 0.85 < clipped / 300 < 0.95
