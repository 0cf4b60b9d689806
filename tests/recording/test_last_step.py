"""The record that ends a run tells of its last step what is still known, and nothing that is not."""

from __future__ import annotations

import pytest
import torch

from lightning_gradguard import GradientPipeline, NormClip, ValueClip


def ended(clip):
    """The record of a run of three steps, none of which was logged."""
    net = torch.nn.Linear(2, 1, bias=False)
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=clip, log_every_n_steps=100)
    for _ in range(3):
        net.weight.grad = torch.tensor([[3.0, 4.0]])
        assert pipeline.before_step() is None
        net.weight.grad = None
    return pipeline.flush()


def test_what_one_coefficient_left_is_told():
    record = ended(NormClip(1.0))
    assert (record.step, record.num_steps, record.num_clipped, record.verdict) == (2, 3, 3, "clipped")
    assert (record.total_norm, record.threshold) == (5.0, 1.0)
    assert record.post_clip_norm == pytest.approx(1.0, rel=1e-6) and record.coefficient == pytest.approx(0.2, rel=1e-6)


def test_what_a_bound_left_is_not_known_and_that_it_clipped_is():
    record = ended(ValueClip(0.5))
    assert (record.verdict, record.num_clipped, record.total_norm) == ("clipped", 3, 5.0)
    assert record.post_clip_norm is record.coefficient is record.cosine is None


def test_without_a_policy_it_is_the_raw_norm():
    record = ended(None)
    assert (record.verdict, record.total_norm, record.post_clip_norm) == ("ok", 5.0, 5.0)


def test_nothing_is_told_twice():
    net = torch.nn.Linear(2, 1, bias=False)
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), log_every_n_steps=1)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert pipeline.before_step() is not None and pipeline.flush() is None
