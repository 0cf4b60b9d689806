"""Each policy against its slow twin, over made-up trainings with spikes, plateaus and changes of level."""

from __future__ import annotations

import math

import pytest

from tests import reference
from tests.clip.bench import Run
from tests.clip.policies import TWINS


def deviation(name: str, seed: int, steps: int) -> float:
    """Largest relative difference of threshold and clipped gradient between a policy and its twin."""
    make, make_twin = TWINS[name]
    run, twin, worst = Run(make()), make_twin(), 0.0
    for grads in reference.gradients(seed, steps):
        clip, got = run.step(grads)
        threshold, expected = twin([grad.double() for grad in grads])
        if threshold is not None and math.isfinite(threshold):
            worst = max(worst, abs(float(clip.threshold) / threshold - 1.0))
        for ours, theirs in zip(got, expected, strict=True):
            scale = float(theirs.abs().max())
            if scale:
                worst = max(worst, float((ours.double() - theirs).abs().max()) / scale)
    return worst


@pytest.mark.parametrize("name", TWINS)
def test_a_policy_gives_the_numbers_of_its_twin(name: str) -> None:
    assert max(deviation(name, seed, 150) for seed in range(6)) < 1e-5


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TWINS, "wrong", (TWINS["ZClip"][0], lambda: reference.Z(decay=0.9699)))
    assert deviation("wrong", 0, 150) > 1e-5
