"""The total norm of every step for the tab, and what a policy would have done to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gradguard.hindsight.series import Series, outline
from lightning_gradguard.tensorboard.events import finite

_PLACES = 1500  # at most twice as many points are drawn
_MARKS = 500
_MAX_STEPS = 50_000  # a policy takes some 0.3 ms for each, and a reader waits


def curve_of(series: Series, clip: str = "") -> dict[str, Any]:
    """Returns steps and norms to draw, and with a policy its threshold there and the steps it would have clipped.

    Args:
        series: of the run.
        clip: a policy in writing, such as ``"ZClip(z=3.0)"``; empty for none.

    Raises:
        ValueError: if that is no policy, needs more than norms, or would take too long here.

    Example:
        >>> from lightning_gradguard.hindsight.series import Piece, join
        >>> answer = curve_of(join([Piece(2, np.array([1.0, 4.0, 2.0], dtype=np.float32))]), "NormClip(3.0)")
        >>> answer["marks"], round(answer["share"], 2)
        ([1], 0.5)
    """
    shown = outline(series, _PLACES)
    answer: dict[str, Any] = {"steps": series.steps[shown].tolist(), "norms": series.norms[shown].tolist()}
    if clip:
        answer |= _trial(series, clip, shown)
    return dict(finite(answer))


def _trial(series: Series, clip: str, shown: NDArray[np.int64]) -> dict[str, Any]:
    # torch is slow to import: TensorBoard waits for it only when somebody asks for a policy
    from lightning_gradguard.hindsight.notation import read_policy, written
    from lightning_gradguard.hindsight.outcome import share_clipped
    from lightning_gradguard.hindsight.trial import try_policy

    policy = read_policy(clip)
    if len(series) * (1 + getattr(policy, "window", 0) // 10_000) > _MAX_STEPS:
        raise ValueError(f"{written(policy)} over {len(series):,} steps takes too long here: use `gradguard whatif`")
    trial = try_policy(policy, series.norms)
    order = np.argsort(trial.coefficients, kind="stable")
    hardest = [int(i) for i in order if trial.clipped[i]][:_MARKS]
    thresholds = np.where(np.isfinite(trial.thresholds), trial.thresholds, -1.0)
    return {
        "policy": written(policy),
        "thresholds": np.where(thresholds < 1e38, thresholds, -1.0)[shown].tolist(),
        "marks": sorted(int(series.steps[i]) for i in hardest),
        "share": share_clipped(trial),
        "smallest": float(trial.coefficients.min()) if len(series) else 1.0,
    }
