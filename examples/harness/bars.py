"""What each study has to show over five seeds, as a statement that can turn out false."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from harness.report import Study, number


@dataclass(frozen=True)
class Bar:
    """One statement about a study.

    Attributes:
        study: its name.
        says: the statement.
        measured: what the runs say, in words.
        holds: whether the runs bear it out.
    """

    study: str
    says: str
    measured: Callable[[Study], str]
    holds: Callable[[Study], bool]


def each(study: str, variant: str, metric: str, low: float = -math.inf, high: float = math.inf) -> Bar:
    """Every seed of a variant lies between two values."""

    def values(made: Study) -> list[float]:
        return made.values(variant, metric)

    return Bar(
        study,
        f"{variant}: {metric} {_range(low, high)} with every seed",
        lambda made: f"{_number(min(values(made)))} … {_number(max(values(made)))}",
        lambda made: all(low <= value <= high for value in values(made)),
    )


def middle(
    study: str, variant: str, metric: str, low: float = -math.inf, high: float = math.inf, *, how: str = "mean"
) -> Bar:
    """The mean or the median over the seeds lies between two values."""

    def value(made: Study) -> float:
        return {"mean": statistics.fmean, "median": statistics.median}[how](made.values(variant, metric))

    return Bar(
        study,
        f"{variant}: {how} {metric} {_range(low, high)}",
        lambda made: _number(value(made)),
        lambda made: low <= value(made) <= high,
    )


def not_finite(study: str, variant: str, share: float = 1.0) -> Bar:
    """So many of the runs end in a NaN."""

    def count(made: Study) -> int:
        return sum(run.stopped_at is not None for run in made.of(variant))

    return Bar(
        study,
        f"{variant}: ends in NaN in at least {share:.0%} of the runs",
        lambda made: f"{count(made)} of {len(made.of(variant))}",
        lambda made: count(made) >= share * len(made.of(variant)),
    )


def better_than_a_gaussian_fit(study: str, variant: str) -> Bar:
    """The mean Fréchet distance is below that of a normal distribution with the pixels' mean and covariance."""
    limit = "Gaussian fit"
    return Bar(
        study,
        f"{variant}: mean Fréchet distance below that of a Gaussian fit of the pixels",
        lambda made: f"{_number(made.mean(variant, 'quality/frechet'))} against {number(made.reference[limit])}",
        lambda made: made.mean(variant, "quality/frechet") < made.reference[limit],
    )


def never_diverges(study: str, variant: str) -> Bar:
    return Bar(
        study,
        f"{variant}: never diverges",
        lambda made: f"{sum(run.diverged for run in made.of(variant))} of {len(made.of(variant))} diverge",
        lambda made: not any(run.diverged for run in made.of(variant)),
    )


def clips_less_than(study: str, variant: str, share: float) -> Bar:
    def rate(made: Study) -> float:
        return statistics.fmean(run.clip_rate or 0.0 for run in made.of(variant))

    return Bar(
        study,
        f"{variant}: clips less than {share:.0%} of the steps",
        lambda made: f"{rate(made):.1%}",
        lambda made: rate(made) < share,
    )


def _range(low: float, high: float) -> str:
    if low == -math.inf:
        return f"≤ {number(high)}"
    return f"≥ {number(low)}" if high == math.inf else f"in [{number(low)}, {number(high)}]"


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else number(value)


ACCURACY, BITS, MSE = "test/accuracy", "val/bits_per_character", "test/mse"

BARS = [
    each("cnn20", "plain", ACCURACY, high=0.15),
    each("cnn20", "plain, sigmoid", ACCURACY, high=0.15),
    each("cnn20", "He + BatchNorm", ACCURACY, low=0.95),
    each("cnn20", "BatchNorm", ACCURACY, low=0.95),
    each("cnn20", "residual", ACCURACY, low=0.95),
    each("cnn20_depth", "6 layers, plain", ACCURACY, low=0.85),
    each("cnn20_depth", "10 layers, plain", ACCURACY, high=0.15),
    each("cnn20_depth", "20 layers, BatchNorm + He", ACCURACY, low=0.95),
    middle("lstm_language_model", "none", BITS, low=3.5, how="median"),
    middle("lstm_language_model", "norm", BITS, high=2.5),
    *(middle("lstm_language_model", adaptive, BITS, high=2.5) for adaptive in ("zclip", "autoclip")),
    *(never_diverges("lstm_language_model", clipped) for clipped in ("norm", "zclip", "autoclip")),
    *(middle("lstm_policies", adaptive, BITS, high=2.5) for adaptive in ("quantile", "agc", "adagc", "maxclip")),
    *(never_diverges("lstm_policies", clipped) for clipped in ("quantile", "agc", "adagc", "maxclip")),
    not_finite("gan", "Xavier, no clipping", 0.9),
    not_finite("gan", "N(0, 1), no clipping", 0.9),
    *(
        bar
        for variant in ("Xavier, norm 1", "Xavier, ZClip, ceiling 1")
        for bar in (
            better_than_a_gaussian_fit("gan", variant),
            middle("gan", variant, "quality/coverage", low=0.65),
            each("gan", variant, "quality/classes", low=10),
        )
    ),
    not_finite("gan_dense", "no clipping"),
    middle("gan_dense", "norm", "quality/coverage", low=0.65),
    each("vanishing_rnn", "sigmoid", MSE, low=0.15),
    each("vanishing_rnn", "lstm", MSE, high=0.01),
    each("vanishing_rnn", "gru", MSE, high=0.01),
    each("activations", "5 layers, sigmoid, torch", ACCURACY, high=0.15),
    each("activations", "5 layers, relu, he", ACCURACY, low=0.95),
    middle("activations_matched", "20 layers, relu, he", ACCURACY, low=0.90),
    middle("activations_matched", "20 layers, tanh, xavier", ACCURACY, low=0.90),
    middle("init_scale", "scale 0.5", "ratio", 1.8e-6 * 0.8, 1.8e-6 * 1.2),
    middle("init_scale", "scale 1.0", "ratio", 0.28 * 0.8, 0.28 * 1.2),
    middle("init_scale", "scale 1.5", "ratio", 3.0 * 0.8, 3.0 * 1.2),
    each("init_scale_scalar", "as published, scale 1.5", "first", high=0.0),
    middle("init_scale_sigmoid", "N(0, 1)", "ratio", 0.041, 0.23),
    each("clipping_direction", "norm 0.25", "lowest", low=1 - 1e-6),
    each("clipping_direction", "value, to the same norm", "cosine", high=0.95),
    each("residual_depth", "20 residual", ACCURACY, low=0.90),
    each("residual_depth", "20 plain", ACCURACY, high=0.15),
    not_finite("residual_depth", "50 residual"),
    middle("bad_batches", "zclip", ACCURACY, low=0.95),
    clips_less_than("bad_batches", "zclip", 0.05),
    each("vanishing_rnn_powers", "radius 0.9", "left", high=1e-3),
    each("vanishing_rnn_powers", "radius 1.5", "left", low=1e14),
]


def of(study: Study) -> list[tuple[Bar, str, bool]]:
    """The statements about a study, what was measured, and whether they hold."""
    return [(bar, bar.measured(study), bar.holds(study)) for bar in BARS if bar.study == study.name]
