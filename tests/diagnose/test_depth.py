"""Depth is the order of the forward pass, and a line comes with its confidence."""

import math
import random

import pytest

from lightning_gradguard.diagnose.depth import execution_order, fit_line, gradient_profile, relative_profile


def test_layers_are_ordered_as_they_ran_and_unseen_ones_stay_behind_their_neighbour(make_record):
    record = make_record(depth=(5, 0, None, 3, None, 9))
    assert list(execution_order(record)) == [1, 2, 3, 4, 0, 5]
    assert list(execution_order(make_record(depth=None))) == [0, 1, 2, 3, 4, 5]


def test_the_profile_is_a_root_mean_square_so_that_layer_size_does_not_matter(make_record):
    record = make_record(layer_norms=(1.0, 2.0, 3.0, 1.0, 1.0, 1.0), layer_sizes=(100, 400, 900, 100, 100, 100))
    assert gradient_profile(record).values == pytest.approx((0.1,) * 6)
    assert gradient_profile(make_record(layer_sizes=None)).values == pytest.approx((0.1,) * 6)


def test_norms_embeddings_and_layers_without_a_gradient_are_left_out(make_record):
    record = make_record(
        layer_kinds=("Embedding", "LayerNorm", "Linear", "Linear", "Linear", "Linear"),
        layer_norms=(0.1, 0.1, 0.1, None, 0.0, math.nan),
    )
    assert gradient_profile(record).layers == ("c",)
    assert relative_profile(record).values == pytest.approx((0.1,))


def test_a_hundred_parts_beside_each_other_make_a_certain_slope_and_no_straight_line():
    noise = random.Random(1)
    line = fit_line([10.0 ** (0.02 * i + noise.gauss(0, 1)) for i in range(100)])
    assert line.is_certain and not line.is_straight
    assert fit_line([10.0 ** (0.5 * i + noise.gauss(0, 0.3)) for i in range(8)]).is_straight


def test_a_perfect_line_is_found_with_no_error():
    line = fit_line([10.0 ** (-0.5 * i) for i in range(8)])
    assert line.slope == pytest.approx(-0.5)
    assert line.decades == pytest.approx(-3.5)
    assert line.error == pytest.approx(0.0, abs=1e-9)
    assert line.is_certain
    assert fit_line([1.0, 2.0, 3.0]) is None


def test_noise_without_a_slope_is_not_certain():
    rng = random.Random(0)
    certain = sum(fit_line([10 ** rng.gauss(0, 1) for _ in range(12)]).is_certain for _ in range(300))
    assert certain < 0.05 * 300
