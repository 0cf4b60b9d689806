from __future__ import annotations

import math

import pytest

from lightning_gradguard.clip.quantile import QuantileClip
from tests.clip.bench import Run


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_it_comes_to_rest_at_the_quantile(quantile: float) -> None:
    run, below = Run(QuantileClip(quantile, rate=0.1)), 0
    for step in range(1500):
        clip, _ = run.at(math.exp(math.sin(step * 2.399963)))
        below += float(clip.coefficient) == 1.0 and step >= 500
    assert below / 1000 == pytest.approx(quantile, abs=0.03)


def test_no_norm_moves_it_by_more_than_its_rate() -> None:
    run = Run(QuantileClip(rate=0.2))
    run.at(1.0)
    before = float(run.state["threshold"])
    run.at(1e9)
    assert float(run.state["threshold"]) == pytest.approx(before * math.exp(0.1), rel=1e-5)
