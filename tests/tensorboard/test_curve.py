"""The full curve of the total norm, and a policy tried on it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lightning_gradguard import ZClip
from lightning_gradguard.hindsight.series import Piece, join
from lightning_gradguard.hindsight.trial import try_policy
from lightning_gradguard.tensorboard.curve import curve_of

NORMS = np.random.default_rng(0).lognormal(0.0, 0.3, 400).astype(np.float32)
NORMS[100], NORMS[200] = 50.0, math.nan
SERIES = join([Piece(399, NORMS)])


def test_the_curve_has_every_finite_step_and_the_thresholds_of_the_real_policy():
    answer = curve_of(SERIES, "ZClip(z=3.0)")
    shown = [i for i in range(400) if i != 200]
    assert answer["steps"] == shown
    trial = try_policy(ZClip(z=3.0), NORMS)
    expected = [float(t) if np.isfinite(t) else -1.0 for t in trial.thresholds[shown]]
    assert answer["thresholds"] == pytest.approx(expected)
    assert answer["marks"] == [int(step) for step in np.flatnonzero(trial.clipped)] and 100 in answer["marks"]
    json.dumps(answer, allow_nan=False)


def test_without_a_policy_it_is_the_curve_alone():
    assert set(curve_of(SERIES)) == {"steps", "norms"}


@pytest.mark.parametrize(
    ("clip", "words"),
    [("AGC()", "needs the norms of units"), ("exit()", "is no policy"), ("AutoClip(window=999999)", "too long")],
)
def test_what_cannot_be_tried_is_refused(clip, words):
    series = SERIES if "window" not in clip else join([Piece(999, np.ones(1000, np.float32))])
    with pytest.raises(ValueError, match=words):
        curve_of(series, clip)
