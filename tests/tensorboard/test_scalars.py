import math

import numpy as np
import pytest

from lightning_gradguard.tensorboard.scalars import scalar_values, to_float32
from tests.tensorboard.synthetic import make_record

LAYERS = ("stem", "head")


def test_a_quiet_record_without_a_policy_has_no_tags_of_clipping():
    values = scalar_values(make_record(3, LAYERS, np.array([3.0, 4.0]), num_steps=1))
    assert values == {
        "grad_norm/stem": 3.0,
        "grad_norm/head": 4.0,
        "grad_norm_total/pre_clip": 5.0,
        "grad_norm_total/post_clip": 5.0,
        "gradguard/nonfinite_total": 0.0,
        "gradguard/skipped_steps": 0.0,
    }


def test_a_clipped_record_under_a_loss_scaler_has_all_of_them():
    record = make_record(
        3, LAYERS, np.ones(2), threshold=1.0, coefficient=0.7, cosine=1.0, clip_rate=0.1, loss_scale=65536.0
    )
    values = scalar_values(record)
    assert values["grad_norm_total/threshold"] == 1.0
    assert values["gradguard/coefficient"] == 0.7
    assert values["gradguard/cosine"] == 1.0
    assert values["gradguard/clipped_fraction"] == 0.1
    assert values["gradguard/loss_scale"] == 65536.0


def test_with_several_optimizers_every_tag_says_which():
    record = make_record(3, LAYERS, np.ones(2), optimizer=1, num_optimizers=2, threshold=1.0)
    tags = set(scalar_values(record))
    assert {"grad_norm/opt1/stem", "grad_norm_total/pre_clip/opt1", "gradguard/nonfinite_total/opt1"} <= tags
    assert all("opt1" in tag for tag in tags)


def test_a_layer_without_gradient_has_no_value_and_nan_stays_nan():
    record = make_record(3, LAYERS, np.array([math.nan, 1.0]))
    assert "grad_norm/stem" not in scalar_values(record)
    bad = make_record(3, LAYERS, np.array([math.nan, 1.0]), cause="nan", total_norm=math.nan)
    assert math.isnan(scalar_values(bad)["grad_norm/stem"])
    assert math.isnan(scalar_values(bad)["grad_norm_total/pre_clip"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0.0), (1e300, 3.4028234663852886e38), (1e-300, 1.401298464324817e-45), (-1e300, -3.4028234663852886e38)],
    ids=["zero", "huge", "tiny", "negative"],
)
def test_float32_keeps_what_kind_of_value_it_was(value, expected):
    assert to_float32(value) == expected
    assert np.isfinite(np.float32(to_float32(value)))
    assert (np.float32(to_float32(value)) == 0) == (value == 0)


def test_float32_leaves_nan_and_infinity():
    assert math.isnan(to_float32(math.nan))
    assert to_float32(math.inf) == math.inf
