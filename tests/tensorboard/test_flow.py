import json
import math

import numpy as np
import pytest

from lightning_gradguard.tensorboard.flow import (
    HEAD_ROWS,
    NO_GRADIENT,
    NO_LOSS,
    NOT_MEASURED,
    STEP_STATS,
    flow_matrix,
    flow_metadata,
    fold,
    layout_hash,
)
from tests.tensorboard.synthetic import make_record

LAYERS = ("stem", "body", "head")


def record(norms, **changes):
    return make_record(10, LAYERS, np.array(norms), **changes)


def step_values(matrix):
    return dict(zip(STEP_STATS, matrix[:HEAD_ROWS].ravel().tolist(), strict=True))


def test_rows_hold_the_largest_norm_since_the_last_record_not_the_last_one():
    matrix = flow_matrix(record([1.0, 1.0, 1.0], max_layer_norms=(9.0, 1.0, 2.0), max_total_norm=9.3))
    assert matrix[HEAD_ROWS:, 0].tolist() == [9.0, 1.0, 2.0]
    assert step_values(matrix)["total_norm"] == pytest.approx(9.3)


def test_no_gradient_zero_and_not_measured_are_three_different_things():
    matrix = flow_matrix(record([math.nan, 0.0, 1.0], weight_norms=(1.0, 1.0, None)))
    assert matrix[HEAD_ROWS:, 0].tolist() == [NO_GRADIENT, 0.0, 1.0]
    assert matrix[HEAD_ROWS:, 1].tolist() == [NO_GRADIENT, 0.0, NOT_MEASURED]
    assert matrix[HEAD_ROWS:, 2].tolist() == [NO_GRADIENT, NOT_MEASURED, NOT_MEASURED]


def test_a_non_finite_layer_shows_nan_or_infinity_though_the_steps_before_were_finite():
    matrix = flow_matrix(
        record(
            [math.nan, math.inf, 1.0],
            cause="nan",
            nonfinite_layers=("stem", "body"),
            max_layer_norms=(1.0, 1.0, 1.0),
            total_norm=math.nan,
        )
    )
    assert math.isnan(matrix[HEAD_ROWS, 0])
    assert matrix[HEAD_ROWS + 1, 0] == math.inf
    assert matrix[HEAD_ROWS + 2, 0] == 1.0
    assert math.isnan(step_values(matrix)["total_norm"])


def test_a_finite_layer_of_a_bad_step_shows_its_norm_of_that_step():
    stopped = {
        "cause": "nan",
        "nonfinite_layers": ("stem",),
        "total_norm": math.nan,
        "max_layer_norms": (0.0, 0.0, 0.0),
    }
    matrix = flow_matrix(record([math.nan, 0.5, 1.0], **stopped))
    assert matrix[HEAD_ROWS + 1 :, 0].tolist() == [0.5, 1.0]


def test_the_ratio_of_a_zero_weight_is_bounded_as_in_agc():
    matrix = flow_matrix(record([0.5, 0.5, 0.5], weight_norms=(0.0, 5.0, 1e-9)))
    assert matrix[HEAD_ROWS:, 1].tolist() == pytest.approx([500.0, 0.1, 500.0])


def test_coefficients_are_those_of_the_layer_where_a_policy_has_them():
    whole = flow_matrix(record([1.0] * 3, min_coefficient=0.25))
    assert whole[HEAD_ROWS:, 3].tolist() == [0.25] * 3
    each = flow_matrix(record([1.0] * 3, min_coefficient=0.25, min_layer_coefficients=(0.5, 1.0, 0.25)))
    assert each[HEAD_ROWS:, 3].tolist() == [0.5, 1.0, 0.25]
    none = flow_matrix(record([1.0] * 3))
    assert (none[HEAD_ROWS:, 3] == NOT_MEASURED).all()


def test_norms_beyond_float32_stay_finite_and_tiny_ones_stay_above_zero():
    matrix = flow_matrix(record([1e200, 1e-200, 1.0], max_layer_norms=(1e200, 1e-200, 1.0)))
    assert np.isfinite(matrix[HEAD_ROWS, 0])
    assert matrix[HEAD_ROWS + 1, 0] > 0


def test_folding_keeps_the_worst_of_both_and_adds_the_counts():
    first = flow_matrix(record([1.0, 5.0, math.nan], min_coefficient=0.5, num_steps=10, num_clipped=2, threshold=1.0))
    second = flow_matrix(record([3.0, 0.0, 1.0], num_steps=5, num_clipped=1, threshold=2.0))
    folded = fold(first, second)
    assert folded[HEAD_ROWS:, 0].tolist() == [3.0, 5.0, 1.0]
    assert folded[HEAD_ROWS:, 3].tolist() == [0.5] * 3
    values = step_values(folded)
    assert (values["num_steps"], values["num_clipped"]) == (15, 3)
    assert (values["threshold"], values["coefficient"]) == (2.0, 0.5)


def test_in_a_fold_totals_are_the_later_ones_and_of_two_losses_the_larger_shows():
    first = flow_matrix(record([1.0] * 3, loss=-0.5, clip_rate=0.4, nonfinite_total=2))
    second = flow_matrix(record([1.0] * 3, loss=-3.0, clip_rate=0.3, nonfinite_total=3))
    unknown = flow_matrix(record([1.0] * 3))
    values = step_values(fold(first, second))
    assert values["loss"] == -0.5
    assert values["clip_rate"] == pytest.approx(0.3)
    assert values["nonfinite_total"] == 3
    assert step_values(fold(unknown, second))["loss"] == -3.0
    assert step_values(unknown)["loss"] == NO_LOSS


def test_in_a_fold_nan_wins_over_everything():
    bad = flow_matrix(record([math.nan, 1.0, 1.0], cause="nan", nonfinite_layers=("stem",), total_norm=math.nan))
    good = flow_matrix(record([math.inf, 1.0, 1.0], cause="inf", nonfinite_layers=("stem",), total_norm=math.inf))
    assert math.isnan(fold(bad, good)[HEAD_ROWS, 0])
    assert math.isnan(fold(good, bad)[HEAD_ROWS, 0])


def test_the_metadata_name_layers_shapes_and_columns():
    content = json.loads(flow_metadata(record([1.0] * 3, layer_shapes=("3×3", "3", "1"), clip_ratio=0.02)))
    assert content["layers"] == list(LAYERS)
    assert content["shapes"] == ["3×3", "3", "1"]
    assert content["layer_stats"] == ["norm", "ratio", "update", "coefficient"]
    assert content["step_stats"] == list(STEP_STATS)
    assert content["clip_ratio"] == 0.02


def test_another_layer_set_has_another_hash():
    def hash_of(layers, **changes):
        return layout_hash(make_record(10, layers, np.ones(len(layers)), **changes))

    assert hash_of(LAYERS) == hash_of(LAYERS)
    seen = hash_of(LAYERS, depth=(0, None, 1))
    assert len({hash_of(LAYERS), hash_of(LAYERS[:2]), hash_of(LAYERS[::-1]), seen}) == 4
