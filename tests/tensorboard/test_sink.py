import json
import math
import sys

import numpy as np
import pytest
from lightning.fabric.loggers.logger import _DummyExperiment
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard.tensorboard.sink import TensorBoardSink
from tests.forked import run_code
from tests.tensorboard.synthetic import VANISHING, busy_run, gan_run, make_record

LAYERS = ("stem", "head")


def record(step, **changes):
    return make_record(step, LAYERS, np.array([3.0, 4.0]), **changes)


def bad_record(step):
    fields = {"cause": "nan", "verdict": "skipped", "nonfinite_layers": ("head",), "total_norm": math.nan}
    return make_record(step, LAYERS, np.array([1.0, math.nan]), **fields)


def events_of(folder):
    """Every event with a summary, file by file in the order they were opened."""
    files = sorted(folder.glob("events.out.tfevents.*"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    return [event for file in files for event in EventFileLoader(str(file)).Load() if event.summary.value]


def tags_of(folder):
    return [[value.tag for value in event.summary.value] for event in events_of(folder)]


def test_a_record_is_one_event(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(record(7))
    sink.close()
    (event,) = events_of(tmp_path)
    assert event.step == 7
    tags = [value.tag for value in event.summary.value]
    assert tags[:3] == [f"grad_norm_total/{name}" for name in ("pre_clip", "largest", "post_clip")]
    assert {"grad_norm/stem", "grad_norm/head"} < set(tags)
    assert sum(tag.startswith("gradguard/flow/") for tag in tags) == 1


def test_layer_names_are_written_once_per_file_not_once_per_record(tmp_path):
    sink = TensorBoardSink(tmp_path)
    for step in range(3):
        sink.write(record(step))
    sink.close()
    described = [
        bool(value.metadata.plugin_data.content)
        for event in events_of(tmp_path)
        for value in event.summary.value
        if value.tag.startswith("gradguard/flow/")
    ]
    assert described == [True, False, False]


def test_a_writer_that_was_closed_and_opened_again_gets_the_layer_names_again(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(lambda: writer)
    sink.write(record(0))
    writer.close()  # as Lightning does at the end of each fit; torch opens a new file at the next write
    sink.write(record(1))
    writer.close()
    flows = [v for e in events_of(tmp_path) for v in e.summary.value if v.tag.startswith("gradguard/flow/")]
    contents = [json.loads(value.metadata.plugin_data.content) for value in flows]
    assert [content["layers"] for content in contents] == [list(LAYERS)] * 2


def test_a_prefix_goes_before_every_tag_as_with_lightning(tmp_path):
    sink = TensorBoardSink(tmp_path, prefix="mine")
    sink.write(record(0, findings=(VANISHING,)))
    sink.close()
    assert all(tag.startswith("mine-") for tags in tags_of(tmp_path) for tag in tags)


def test_two_optimizers_have_tags_of_their_own(tmp_path):
    sink = TensorBoardSink(tmp_path)
    for one in gan_run(num_records=2):
        sink.write(one)
    sink.close()
    first, second, *_ = tags_of(tmp_path)
    assert not set(first) & set(second)


def test_after_a_bad_step_all_is_on_disk_though_nobody_closed(tmp_path):
    writer = SummaryWriter(str(tmp_path), max_queue=1000, flush_secs=3600)
    sink = TensorBoardSink(writer)
    sink.write(record(0))
    sink.write(bad_record(1))
    assert len(events_of(tmp_path)) == 2
    writer.close()


def test_events_are_cumulative_and_the_rest_is_written_at_the_end(tmp_path):
    sink = TensorBoardSink(tmp_path)
    for step in range(60):
        sink.write(bad_record(step))
    sink.close()
    payloads = [
        json.loads(value.tensor.string_val[0])
        for event in events_of(tmp_path)
        for value in event.summary.value
        if value.tag == "gradguard/events"
    ]
    counts = [payload["counts"]["nonfinite"] for payload in payloads]
    assert counts[:19] == list(range(1, 20))
    assert counts[-1] == 60
    assert len(counts) < 45


def test_a_record_without_layers_has_scalars_and_no_picture(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(make_record(0, (), np.array([]), total_norm=2.0))
    sink.close()
    (tags,) = tags_of(tmp_path)
    assert "grad_norm_total/pre_clip" in tags
    assert not any("flow" in tag for tag in tags)


def test_a_writer_that_only_knows_scalars_gets_scalars():
    class Scalars:
        def __init__(self):
            self.written = {}

        def add_scalar(self, tag, value, step):
            self.written[tag, step] = value

        def flush(self):
            pass

    writer = Scalars()
    TensorBoardSink(writer).write(record(3))
    assert writer.written["grad_norm/stem", 3] == 3.0
    assert not any("flow" in tag for tag, _ in writer.written)


def test_the_stand_in_of_a_rank_that_does_not_log_is_taken_without_complaint():
    TensorBoardSink(_DummyExperiment()).write(bad_record(3))


def test_a_folder_that_cannot_be_written_costs_the_record_and_warns_once(tmp_path):
    file = tmp_path / "taken"
    file.write_text("not a folder")
    sink = TensorBoardSink(file / "run")
    with pytest.warns(UserWarning, match=r"records are lost, noticed at step 0 .*Training goes on") as caught:
        sink.write(record(0))
        sink.write(record(1))
    assert len(caught) == 1
    file.unlink()
    sink.write(record(2))
    sink.close()
    assert [event.step for event in events_of(file / "run")] == [2]


FULL_DISK = """
import resource, signal, sys, warnings, threading
import numpy as np
from lightning_gradguard.tensorboard.sink import TensorBoardSink
from tests.tensorboard.synthetic import large_run
threading.excepthook = lambda args: None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
warnings.simplefilter("always")
sink = TensorBoardSink(sys.argv[1])
steps = 0
for record in large_run(num_layers=50, num_records=200):
    sink.write(record)
    steps += 1
sink.close()
print("steps", steps)
"""


def test_a_full_disk_does_not_end_the_run(tmp_path):
    result = run_code(FULL_DISK, tmp_path / "run", cwd=tmp_path)
    assert result.stdout.strip() == "steps 200", result.stderr
    assert "[Errno 27] File too large" in result.stderr


def test_writing_leaves_no_list_that_grows_with_the_run(tmp_path):
    sink = TensorBoardSink(tmp_path)
    for one in busy_run(num_records=200):
        sink.write(one)
    small = sys.getsizeof(sink._described) + sys.getsizeof(sink._last) + sys.getsizeof(sink._events)
    for one in busy_run(num_records=600):
        sink.write(one)
    assert sys.getsizeof(sink._described) + sys.getsizeof(sink._last) + sys.getsizeof(sink._events) == small
    sink.close()


def test_a_record_without_weight_norms_shows_its_ratio_to_the_last_known_ones(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(record(1, weight_norms=(2.0, 2.0)))
    sink.write(record(2, weight_norms=None))
    sink.close()
    flows = [v for event in events_of(tmp_path) for v in event.summary.value if v.tag.startswith("gradguard/flow/")]
    ratios = [tensor_util.make_ndarray(value.tensor)[-2:, 1].tolist() for value in flows]
    assert ratios == [[1.5, 2.0], [1.5, 2.0]]
