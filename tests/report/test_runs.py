import numpy as np
import pytest
from tensorboard.util.tensor_util import make_tensor_proto

from lightning_gradguard.report.picture import MAX_COLUMNS, thin
from lightning_gradguard.report.runs import read_runs
from lightning_gradguard.sinks import JsonlSink
from lightning_gradguard.tensorboard.flow import HEAD_ROWS
from tests.tensorboard.synthetic import busy_run, gan_run, large_run, vanishing_run, write_foreign, write_run


def read_pictures(path):
    runs, unreadable = read_runs(path)
    return [picture for run in runs for picture in run.pictures], unreadable


def write_jsonl(path, records):
    sink = JsonlSink(path)
    for record in records:
        sink.write(record)


def test_event_files_and_jsonl_files_give_the_same_picture(tmp_path):
    write_run(tmp_path / "events" / "busy", busy_run())
    write_jsonl(tmp_path / "lines" / "busy.jsonl", busy_run())
    ((from_events,), _) = read_pictures(tmp_path / "events")
    ((from_lines,), _) = read_pictures(tmp_path / "lines")
    assert from_events.run == from_lines.run == "busy"
    assert from_events.events == from_lines.events
    assert from_events.flow.layers == from_lines.flow.layers
    assert np.array_equal(from_events.flow.steps, from_lines.flow.steps)
    assert np.array_equal(from_events.flow.matrices, from_lines.flow.matrices, equal_nan=True)


def test_every_run_and_optimizer_below_the_folder_is_found(tmp_path, logdir):
    names = [(picture.run, picture.optimizer) for picture in read_pictures(logdir)[0]]
    assert names == [("busy", 0), ("gan", 0), ("gan", 1), ("steady", 0), ("vanishing", 0)]
    write_jsonl(tmp_path / "a" / "b.jsonl", gan_run())
    assert [(p.run, p.optimizer) for p in read_pictures(tmp_path)[0]] == [("a/b", 0), ("a/b", 1)]


def test_one_jsonl_file_is_enough(tmp_path):
    write_jsonl(tmp_path / "run.jsonl", vanishing_run())
    ((picture,), _) = read_pictures(tmp_path / "run.jsonl")
    assert [finding["rule"] for finding in picture.events["findings"]] == ["vanishing-over-depth"]


def test_long_runs_are_folded_without_losing_a_spike():
    pass_through = thin(make_flow(100))
    assert len(pass_through.steps) == 100
    flow = make_flow(3000)
    folded = thin(flow)
    assert len(folded.steps) == MAX_COLUMNS
    assert folded.steps[-1] == flow.steps[-1]
    assert (np.diff(folded.steps) > 0).all()
    layers = (slice(None), slice(HEAD_ROWS, None), 0)
    assert folded.matrices[layers].max() == flow.matrices[layers].max()
    assert folded.matrices[:, :HEAD_ROWS].reshape(MAX_COLUMNS, -1)[:, 4].sum() == 3000 * 50


def make_flow(num_records):
    from lightning_gradguard.tensorboard.flow import flow_matrix, layout_of
    from lightning_gradguard.tensorboard.store import Column, flow_of

    records = list(large_run(num_layers=3, num_records=num_records))
    layout = layout_of(records[0])
    columns = [(layout, Column(r.step, float(i), flow_matrix(r))) for i, r in enumerate(records)]
    return flow_of([layout], columns)


def test_a_folder_without_gradients_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no gradients: no event file"):
        read_pictures(tmp_path)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        read_pictures(tmp_path / "nowhere")


def test_a_broken_line_is_named(tmp_path):
    write_jsonl(tmp_path / "run.jsonl", vanishing_run(num_records=2))
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write("{}\n")
    assert read_pictures(tmp_path)[0] == []
    (unreadable,) = read_pictures(tmp_path)[1]
    assert unreadable.run == "run" and "run.jsonl, line 3" in unreadable.reason


def not_json(path):
    path.write_text("not a record\n")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def unlink(path):
    path.unlink()
    path.symlink_to("nowhere")


def foreign(content):
    """An event file of the plugin's name with metadata that we do not write."""

    def write(path):
        path.unlink()
        write_foreign(path.parent, [("x", content, make_tensor_proto(np.zeros((2, 2), np.float32)))])

    return write


OTHER_SHAPE = b'{"kind": "flow", "optimizer": 0, "layers": ["a", "b", "c"], "layer_stats": ["x"], "step_stats": ["y"]}'


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip, "is damaged at byte"),
        (lambda path: path.write_bytes(b"\0" * 100), "is damaged at byte 0"),
        (unlink, "cannot be read: No such file"),
        (foreign(b"not json"), "run 'bad': what was written with its tensors is not ours"),
        (foreign(b'{"kind": "flow", "optimizer": 0}'), "no layers are given"),
        (foreign(b'{"kind": "flow", "optimizer": 0, "layers": ["a", "b", "c"]}'), "its columns have no names"),
        (foreign(OTHER_SHAPE), "run 'bad' cannot be read"),
    ],
    ids=["flipped", "zeros", "dangling", "foreign", "no layers", "no columns", "other shape"],
)
def test_an_event_file_that_cannot_be_read_costs_its_run_alone_and_is_named(tmp_path, spoil, reason):
    write_run(tmp_path / "good", vanishing_run())
    write_run(tmp_path / "bad", busy_run())
    spoil(next((tmp_path / "bad").iterdir()))
    pictures, unreadable = read_pictures(tmp_path)
    assert "good" in [picture.run for picture in pictures]
    assert len(unreadable) == 1
    assert reason in unreadable[0].reason
    assert "bad" in unreadable[0].run


def test_a_file_of_lines_that_cannot_be_read_costs_its_run_alone_and_is_named(tmp_path):
    write_jsonl(tmp_path / "good.jsonl", vanishing_run())
    not_json(tmp_path / "bad.jsonl")
    pictures, unreadable = read_pictures(tmp_path)
    assert [picture.run for picture in pictures] == ["good"]
    assert "bad.jsonl, line 1" in unreadable[0].reason


def test_one_run_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    write_jsonl(tmp_path / "good" / "gradguard.jsonl", vanishing_run(num_records=2))
    (tmp_path / "bad.jsonl").write_text("no record\n")
    pictures, unreadable = read_pictures(tmp_path)
    assert [picture.run for picture in pictures] == ["good"]
    assert [run.run for run in unreadable] == ["bad"]
