"""Running statistics of normalization: whether they have left their beginning."""

import copy

import pytest
import torch
from torch import nn

from lightning_gradguard.probes.running import RunningStatistics
from lightning_gradguard.record import RunningStats

FLOWS = {"0": True}


def looked_at(norm, batches, *, flows=FLOWS):
    seen = RunningStatistics(nn.Sequential(norm))
    seen.begin()
    for _ in range(batches):
        norm(3 + 5 * torch.randn(8, 2))
    return seen, seen.look(flows)


def test_what_is_left_of_the_beginning_is_what_no_batch_has_replaced():
    norm = nn.BatchNorm1d(2, momentum=0.05)
    _, (stats,) = looked_at(norm, 4)
    assert stats == RunningStats("0", pytest.approx(0.95**4), 4, training=True)
    assert norm.running_var.mean() == pytest.approx(25 * (1 - stats.left) + stats.left, rel=0.5)


def test_one_that_follows_is_not_looked_at_any_more():
    seen, stats = looked_at(nn.BatchNorm1d(2), 7)
    assert stats == ()
    assert seen.state() == []


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(2, momentum=None),
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.LayerNorm(2),
        nn.LazyBatchNorm1d(),
    ],
    ids=["the mean of all batches", "without running statistics", "another normalization", "not made yet"],
)
def test_others_are_left_alone(norm):
    assert looked_at(norm, 1)[1] == ()


def test_loaded_statistics_are_left_alone():
    norm = nn.BatchNorm1d(2, momentum=0.0)
    norm.running_mean += 1
    assert looked_at(norm, 4)[1] == ()


def test_one_that_did_not_run_or_passes_no_gradient_on_is_not_shown():
    for flows in ({}, {"0": False}):
        assert looked_at(nn.BatchNorm1d(2, momentum=0.0), 4, flows=flows)[1] == ()


def test_a_resumed_run_looks_at_the_same_ones():
    norm = nn.BatchNorm1d(2, momentum=1e-3)
    seen, stats = looked_at(norm, 4)
    resumed = RunningStatistics(nn.Sequential(copy.deepcopy(norm)))
    resumed.load_state(seen.state())
    resumed.begin()
    assert resumed.look(FLOWS) == stats
