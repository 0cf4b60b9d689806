import json
from collections import Counter

import numpy as np
import pytest

from lightning_gradguard import read_run
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, LAYER_STATS, NO_LOSS, NOT_MEASURED, STEP_STATS, flow_matrix
from lightning_gradguard.tensorboard.sink import TensorBoardSink
from lightning_gradguard.tensorboard.store import Column, FlowStore, flow_of, in_order, merge_events, merge_orders
from tests.tensorboard.reading import slow_provider
from tests.tensorboard.synthetic import busy_run, large_run, make_record, steady_run, vanishing_run, write_run


def column(step, time, norm=1.0):
    return Column(step, time, flow_matrix(make_record(step, ("a",), np.array([norm]))))


def test_what_was_written_is_read_back_through_either_loader(provider):
    records = list(busy_run())
    flow = FlowStore(provider).flow("busy", 0)
    assert flow.layers == records[0].layers
    assert flow.shapes == records[0].layer_shapes
    assert flow.steps.tolist() == [record.step for record in records]
    expected = np.stack([flow_matrix(record) for record in records])
    assert np.array_equal(flow.matrices, expected, equal_nan=True)


def test_runs_are_listed_with_what_the_tab_needs(provider):
    runs = {run["name"]: run for run in FlowStore(provider).runs()}
    assert set(runs) == {"busy", "gan", "steady", "vanishing"}
    assert (runs["busy"]["last_step"], runs["busy"]["layers"]) == (2990, 26)
    assert runs["gan"]["optimizers"] == [0, 1]
    assert [run["wall_time"] for run in runs.values()] == sorted((r["wall_time"] for r in runs.values()), reverse=True)
    assert runs["busy"]["nonfinite"] == 1
    assert runs["busy"]["clipped"] == pytest.approx(list(busy_run())[-1].clip_rate)
    assert runs["vanishing"]["finding"]["rule"] == "vanishing-over-depth"
    assert runs["vanishing"]["spread"] > 1e10
    assert runs["steady"]["finding"] is None


def test_events_and_findings_are_read_back_through_either_loader(provider):
    store = FlowStore(provider)
    assert store.events("busy", 0)["counts"] == {"spike": 5, "nonfinite": 1}
    (finding,) = store.events("vanishing", 0)["findings"]
    assert finding["rule"] == "vanishing-over-depth"
    assert store.events("steady", 0) == {"counts": {}, "events": [], "findings": []}


def test_each_optimizer_has_its_own_picture(provider):
    store = FlowStore(provider)
    assert store.flow("gan", 0).layers[0] == "generator.0"
    assert store.flow("gan", 1).layers[0] == "discriminator.0"


@pytest.mark.parametrize(("run", "optimizer"), [("nowhere", 0), ("busy", 3)])
def test_a_run_that_is_not_there_is_refused_by_name(provider, run, optimizer):
    with pytest.raises(KeyError, match=f"no gradient flow of optimizer {optimizer} in run '{run}'"):
        FlowStore(provider).flow(run, optimizer)


def test_columns_where_something_happened_survive_the_sampling(tmp_path):
    write_run(tmp_path / "large", large_run(num_layers=4, num_records=400))
    flow = FlowStore(slow_provider(tmp_path, samples=20)).flow("large", 0)
    assert len(flow.steps) <= 22
    assert {400 // 3 * 50, 200 * 50} <= set(flow.steps.tolist())


def test_a_run_taken_up_again_from_a_checkpoint_drops_the_attempt_that_was_given_up():
    columns = [column(10, 1.0), column(20, 2.0), column(30, 3.0), column(20, 4.0), column(25, 5.0)]
    assert [(c.step, c.wall_time) for c in in_order(columns)] == [(10, 1.0), (20, 4.0), (25, 5.0)]


def test_two_records_of_one_step_are_folded_and_one_written_twice_is_one():
    (folded,) = in_order([column(10, 1.0, norm=5.0), column(10, 2.0, norm=1.0)])
    assert folded.matrix[HEAD_ROWS, 0] == 5.0
    assert folded.matrix[:HEAD_ROWS].ravel()[4] == 20  # both had 10 steps
    (one,) = in_order([column(10, 1.0), column(10, 1.0)])
    assert one.matrix[:HEAD_ROWS].ravel()[4] == 10


def test_layers_that_came_later_are_put_where_they_belong(tmp_path):
    sink = TensorBoardSink(tmp_path / "unfrozen")
    for step in range(4):
        layers = ("body", "head") if step < 2 else ("stem", "body", "head")
        sink.write(make_record(step, layers, np.arange(1.0, 1.0 + len(layers))))
    sink.close()
    flow = FlowStore(slow_provider(tmp_path)).flow("unfrozen", 0)
    assert flow.layers == ("stem", "body", "head")
    assert flow.matrices[:, HEAD_ROWS:, 0].tolist() == [[NOT_MEASURED, 1, 2]] * 2 + [[1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("orders", "merged"),
    [
        ([["a", "b"], ["a", "b"]], ["a", "b"]),
        ([["head"], ["stem", "body", "head"]], ["stem", "body", "head"]),
        ([["a", "c", "d"], ["a", "b"]], ["a", "b", "c", "d"]),
        ([["b", "c", "d"], ["a"]], ["a", "b", "c", "d"]),
        ([["x"], ["y"]], ["y", "x"]),
    ],
    ids=["same", "subset", "middle", "front", "disjoint"],
)
def test_orders_merge_without_losing_a_name(orders, merged):
    assert merge_orders(orders) == merged


def test_rows_are_in_the_order_of_the_forward_pass(tmp_path):
    sink = TensorBoardSink(tmp_path / "odd")
    for step, depth in enumerate([(1, None, None), (2, 0, 1)]):  # the first forward pass met one module only
        sink.write(make_record(step, ("head", "stem", "body"), np.array([3.0, 1.0, 2.0]), depth=depth))
    sink.close()
    flow = FlowStore(slow_provider(tmp_path)).flow("odd", 0)
    assert flow.layers == ("stem", "body", "head")
    assert flow.matrices[:, HEAD_ROWS:, 0].tolist() == [[1, 2, 3]] * 2


def test_a_log_of_the_first_version_is_read_by_the_names_of_its_columns():
    matrix = np.concatenate([np.arange(8).reshape(2, 4), [[5.0, 0.5, -2.0, 1.0]]]).astype(np.float32)
    meta = {"layers": ["a"], "layer_stats": list(LAYER_STATS), "step_stats": list(STEP_STATS[:8])}
    flow = flow_of([meta], [(meta, Column(1, 0.0, matrix))])
    head = dict(zip(STEP_STATS, flow.matrices[0, :HEAD_ROWS].ravel().tolist(), strict=True))
    assert [head[name] for name in STEP_STATS[:8]] == list(range(8))
    assert (head["loss"], head["clip_rate"]) == (NO_LOSS, NOT_MEASURED)
    assert flow.matrices[0, HEAD_ROWS].tolist() == [5.0, 0.5, -2.0, 1.0]


def test_a_log_of_a_later_version_is_read_without_what_is_unknown_here():
    step_stats = [*reversed(STEP_STATS), "entropy", "a", "b", "c"]
    own = ("entropy", "norm", "ratio", "coefficient")
    matrix = np.concatenate([np.arange(16).reshape(4, 4), [[9.0, 5.0, 0.5, 1.0]]]).astype(np.float32)
    meta = {"layers": ["a"], "layer_stats": own, "step_stats": step_stats}
    flow = flow_of([meta], [(meta, Column(1, 0.0, matrix))])
    assert flow.matrices[0, :HEAD_ROWS].ravel().tolist() == list(range(11, -1, -1))
    assert flow.matrices[0, HEAD_ROWS].tolist() == [5.0, 0.5, NOT_MEASURED, 1.0]


def test_a_hundred_runs_are_listed_with_as_many_reads_as_one(tmp_path):
    for i in range(100):
        write_run(tmp_path / f"run{i:03d}", (steady_run if i % 2 else vanishing_run)(num_records=6, depth=4))
    provider = Counting(slow_provider(tmp_path))
    runs = FlowStore(provider).runs()
    assert len(runs) == 100
    assert provider.calls == {"list_tensors": 1, "read_tensors": 2}
    assert len(json.dumps(runs)) < 100 * 500


class Counting:
    """A data provider that counts what is asked of it."""

    def __init__(self, provider):
        self.provider = provider
        self.calls = Counter()

    def __getattr__(self, name):
        self.calls[name] += 1
        return getattr(self.provider, name)


def test_events_of_a_continued_run_are_those_of_all_its_parts():
    def payload(*steps):
        events = [{"step": step, "kind": "spike", "text": "", "layers": [], "num_layers": 0} for step in steps]
        return {"counts": {"spike": len(steps)}, "events": events, "findings": []}

    merged = merge_events([payload(1), payload(1, 2), payload(7), payload(7, 8)])
    assert merged["counts"] == {"spike": 4}
    assert [event["step"] for event in merged["events"]] == [1, 2, 7, 8]


def test_every_steps_norm_is_read_back_however_many_records_there_are(tmp_path):
    norms = np.random.default_rng(0).random(2400).astype(np.float32)
    norms[7], norms[9] = np.nan, np.inf
    sink = TensorBoardSink(tmp_path / "run")
    for i in range(1200):  # TensorBoard keeps a sample of a thousand under one tag
        two = tuple(norms[2 * i : 2 * i + 2].tolist())
        sink.write(make_record(2 * i + 1, ("a",), np.array([1.0]), num_steps=2, total_norms=two))
    sink.close()
    series = FlowStore(slow_provider(tmp_path)).norms("run", 0)
    assert np.array_equal(series.norms, norms, equal_nan=True)
    assert series.steps.tolist() == list(range(2400))
    records = read_run(tmp_path / "run").records
    assert np.array_equal([n for r in records for n in r.total_norms], norms, equal_nan=True)


def test_a_run_of_an_older_version_has_no_series(provider):
    assert len(FlowStore(provider).norms("busy", 0)) == 0
