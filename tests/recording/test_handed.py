"""A record that waits is completed with what is there when the optimizer steps, or says that this is not known."""

from __future__ import annotations

import pytest
import torch

from lightning_gradguard import GradientPipeline, MemorySink, NormClip


@pytest.fixture
def step():
    """One step whose record waits: the net, the pipeline, and what has been published."""
    net, sink = torch.nn.Linear(2, 1, bias=False), MemorySink()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, clip=NormClip(1.0), sinks=[sink], log_every_n_steps=1)
    pipeline.holds = True
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert pipeline.before_step() is not None and sink.records == []
    return net, pipeline, sink


def test_nobody_changed_it(step):
    _, pipeline, sink = step
    assert not pipeline.hand_over(pipeline.optimizer)
    assert (sink.records[0].post_clip_norm, sink.records[0].cosine) == pytest.approx((1.0, 1.0))


def test_somebody_changed_it(step):
    net, pipeline, sink = step
    net.weight.grad.mul_(3.0)
    assert pipeline.hand_over(pipeline.optimizer)
    assert sink.records[0].post_clip_norm == pytest.approx(3.0) and sink.records[0].cosine is None
    assert not pipeline.hand_over(pipeline.optimizer) and len(sink.records) == 1


def test_it_is_not_finite_any_more(step):
    net, pipeline, sink = step
    net.weight.grad.fill_(torch.nan)
    assert pipeline.hand_over(pipeline.optimizer) and sink.records[0].post_clip_norm is None


def test_somebody_took_it_away(step):
    net, pipeline, sink = step
    net.weight.grad = None
    assert pipeline.hand_over(pipeline.optimizer) and sink.records[0].post_clip_norm is None


@pytest.mark.parametrize("end", ["after_step", "flush", "state_dict", "close", "before_step"])
def test_nobody_stepped(step, end):
    _, pipeline, sink = step
    getattr(pipeline, end)()
    assert sink.records[0].post_clip_norm is None and sink.records[0].total_norm == 5.0
