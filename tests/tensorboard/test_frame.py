import json
import struct

import numpy as np
import pytest

from lightning_gradguard.tensorboard.flow import HEAD_ROWS, LAYER_STATS, STEP_STATS
from lightning_gradguard.tensorboard.frame import encode_frame
from lightning_gradguard.tensorboard.store import Flow


def make_flow(columns=3, layers=("a", "bé")):
    rows = HEAD_ROWS + len(layers)
    matrices = np.arange(columns * rows * 4, dtype=np.float32).reshape(columns, rows, 4)
    steps, times = np.arange(columns) * 10, np.arange(columns) + 0.5
    return Flow(layers, ("2×2", ""), ("Linear", ""), steps.astype(np.int64), times, matrices, 0.01)


def decode(body):
    (length,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + length])
    columns, layers, offset = header["columns"], len(header["layers"]), 4 + length
    assert offset % 8 == 0
    arrays = []
    for count, kind in [
        (columns, "<f8"),
        (columns, "<f8"),
        (columns * len(STEP_STATS), "<f4"),
        (layers * columns, "<f4"),
    ]:
        arrays.append(np.frombuffer(body, kind, count, offset))
        offset += arrays[-1].nbytes
    assert offset == len(body)
    return header, arrays


@pytest.mark.parametrize("stat", LAYER_STATS)
def test_a_frame_holds_one_statistic_by_layer_and_all_of_the_step(stat):
    flow = make_flow()
    header, (steps, times, step_values, values) = decode(encode_frame(flow, stat))
    assert header["layers"] == ["a", "bé"]
    assert header["kinds"] == ["Linear", ""]
    assert header["clip_ratio"] == 0.01
    assert steps.tolist() == [0, 10, 20]
    assert times.tolist() == [0.5, 1.5, 2.5]
    assert np.array_equal(step_values.reshape(3, -1), flow.matrices[:, :HEAD_ROWS].reshape(3, -1))
    assert np.array_equal(values.reshape(2, 3), flow.matrices[:, HEAD_ROWS:, LAYER_STATS.index(stat)].T)


def test_the_header_says_which_statistics_were_measured_at_all():
    flow = make_flow()
    flow.matrices[:, HEAD_ROWS:, LAYER_STATS.index("update")] = -2.0
    header, _ = decode(encode_frame(flow, "norm"))
    assert header["measured"] == ["norm", "ratio", "coefficient"]


def test_an_unknown_statistic_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="stat must be one of norm, ratio, update, coefficient; got 'median'"):
        encode_frame(make_flow(), "median")
