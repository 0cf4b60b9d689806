"""The series of total norms: every step as it was, and a vector that does not grow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.counted import count
from lightning_gradguard import GradientPipeline, MemorySink
from lightning_gradguard.recording.step_norms import CAPACITY, StepNorms, told


def kept(norms: torch.Tensor, pieces: int) -> StepNorms:
    series = StepNorms(torch.device("cpu"))
    for piece in norms.split(pieces):
        series.extend(piece)
    return series


@pytest.mark.parametrize("pieces", [1, 31, 32, 5000])
def test_each_step_has_its_place_up_to_the_capacity(pieces: int) -> None:
    norms = torch.rand(CAPACITY if pieces > 1 else 100)
    norms[3], norms[7] = math.nan, math.inf
    series = kept(norms, pieces)
    assert series.steps_per_norm == 1
    assert torch.equal(series.values(), norms) or torch.equal(series.values().nan_to_num(), norms.nan_to_num())
    assert told(series.values().tolist())[7] == math.inf


@pytest.mark.parametrize("num_steps", [CAPACITY + 1, 2 * CAPACITY, 2 * CAPACITY + 33, 5 * CAPACITY + 7])
def test_beyond_it_places_are_shared_and_keep_the_largest_finite_norm(num_steps: int) -> None:
    norms = torch.rand(num_steps)
    norms[5], norms[8], norms[9], norms[num_steps - 1] = math.nan, math.inf, math.nan, 7.0
    series = kept(norms, 32)
    every = series.steps_per_norm
    assert every == 2 ** math.ceil(math.log2(num_steps / CAPACITY))
    groups = [group[group.isfinite()] for group in norms.split(every)]
    expected = [float(group.max()) if len(group) else math.nan for group in groups]
    assert repr(told(series.values().tolist())) == repr(tuple(expected))
    assert series._norms.numel() == CAPACITY


@pytest.mark.parametrize("num_steps", [10, CAPACITY + 13])
def test_it_goes_on_from_its_state_to_the_bit(num_steps: int) -> None:
    norms = torch.rand(num_steps + 100)
    whole, first = kept(norms, 32), kept(norms[:num_steps], 32)
    second = StepNorms(torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    second.extend(norms[num_steps:])
    assert torch.equal(second.values(), whole.values())


def train(pipeline: GradientPipeline, net: nn.Module, norms: list[float]) -> None:
    """Steps whose gradients have these norms."""
    for norm in norms:
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, norm / 2.0)  # four elements
        pipeline.before_step()


def pipeline_of(net: nn.Module, **options: object) -> tuple[GradientPipeline, MemorySink]:
    memory = MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    return GradientPipeline(net, optimizer, sinks=[memory], rules=[], **options), memory  # type: ignore[arg-type]


def series_of(memory: MemorySink) -> list[float]:
    return [norm for record in memory.records for norm in record.total_norms or ()]


def test_every_step_is_in_a_record_dropped_ones_too() -> None:
    net = nn.Linear(4, 1, bias=False)
    pipeline, memory = pipeline_of(net, on_nonfinite="skip", log_every_n_steps=50)
    norms = [float(step) for step in range(1, 121)]
    norms[3], norms[70], norms[71] = math.nan, math.inf, math.nan
    train(pipeline, net, norms)
    pipeline.close()
    assert repr(series_of(memory)) == repr(norms)
    assert [record.num_steps for record in memory.records] == [len(r.total_norms or ()) for r in memory.records]
    assert all(record.steps_per_norm == 1 for record in memory.records)


def test_a_resumed_run_has_the_series_of_one_that_was_not_interrupted() -> None:
    net = nn.Linear(4, 1, bias=False)
    norms = torch.rand(90).tolist()
    whole, of_whole = pipeline_of(net)
    train(whole, net, norms)
    first, of_first = pipeline_of(net)
    train(first, net, norms[:77])
    state = first.state_dict()
    second, of_second = pipeline_of(net)
    second.load_state_dict(state)
    train(second, net, norms[77:])
    for pipeline in (whole, second):
        pipeline.close()
    assert series_of(of_first)[:50] + series_of(of_second) == series_of(of_whole)


def test_a_checkpoint_without_a_series_is_gone_on_from() -> None:
    net = nn.Linear(4, 1, bias=False)
    pipeline, memory = pipeline_of(net)
    train(pipeline, net, [1.0] * 7)
    state = pipeline.state_dict()
    del state["window"]["total_norms"]
    other, memory = pipeline_of(net)
    other.load_state_dict(state)
    train(other, net, [2.0])
    other.close()
    assert (memory.records[0].num_steps, memory.records[0].total_norms) == (8, (2.0,))


def test_parameters_that_come_and_go_leave_the_series_whole() -> None:
    net = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False))
    pipeline, memory = pipeline_of(net)
    train(pipeline, net, [1.0] * 5)
    pipeline.optimizer.param_groups[0]["params"].pop()
    train(pipeline, net, [3.0] * 3)
    pipeline.close()
    assert series_of(memory) == pytest.approx([2**0.5] * 5 + [3.0] * 3)


def test_thirty_two_steps_cost_two_operators_and_no_read_by_the_host() -> None:
    norms, net = StepNorms(torch.device("cpu")), nn.Linear(2, 2)
    totals = torch.rand(32)
    found = count(net, lambda: norms.extend(totals))
    assert (found.calls, found.host_reads, found.host_copies) == (2, 0, 0)
