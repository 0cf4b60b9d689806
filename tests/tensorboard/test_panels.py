import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_gradguard.tensorboard.flow import NO_GRADIENT
from lightning_gradguard.tensorboard.panels import TensorBoardPanels, heat_map
from tests.tensorboard.synthetic import busy_run, gan_run


def written(folder, records):
    sink = TensorBoardPanels(folder)
    for record in records:
        sink.write(record)
    sink.close()
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    return accumulator


def test_the_standard_dashboards_get_a_layout_a_histogram_and_a_picture(tmp_path):
    board = written(tmp_path, busy_run(num_records=30))
    tags = board.Tags()
    assert tags["histograms"] == ["gradguard/log10_layer_norm"]
    assert len(board.Histograms("gradguard/log10_layer_norm")) == 30
    (image,) = board.Images("gradguard/layers_by_steps/opt0/26_layers")
    assert (image.height, image.width) == (26 * 9, 30 * 8)
    layout = layout_pb2.Layout.FromString(board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (category,) = layout.category
    assert [chart.title for chart in category.chart] == ["total norm and threshold", "layers"]


def test_each_optimizer_has_its_own(tmp_path):
    tags = written(tmp_path, gan_run(num_records=5)).Tags()
    assert tags["histograms"] == ["gradguard/log10_layer_norm/opt0", "gradguard/log10_layer_norm/opt1"]
    assert len(tags["images"]) == 2


def test_a_long_run_keeps_a_bounded_picture():
    sink = TensorBoardPanels(NoWriter())
    for record in busy_run(num_records=1500, blocks=1):
        sink.write(record)
    (columns,) = sink._columns.values()
    assert 512 <= len(columns) < 1024


class NoWriter:
    """A rank that does not log."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def test_nothing_written_is_nothing_shown(tmp_path):
    TensorBoardPanels(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("norm", "colour"),
    [
        (1.0, (245, 243, 239)),
        (1e3, (143, 63, 4)),
        (1e9, (143, 63, 4)),
        (1e-3, (15, 76, 148)),
        (0.0, (141, 147, 153)),
        (NO_GRADIENT, (215, 219, 224)),
        (np.nan, (0, 0, 0)),
        (np.inf, (0, 0, 0)),
    ],
    ids=["usual", "larger", "much larger", "smaller", "zero", "none", "nan", "inf"],
)
def test_each_kind_of_value_has_its_colour(norm, colour):
    norms = np.array([[1.0, 1.0, 1.0, norm]], dtype=np.float32)
    picture = heat_map(norms)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, -1]) == colour
