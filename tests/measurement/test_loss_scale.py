"""True gradients under a loss scale on CPU, for optimizers that unscale themselves and those that do not."""

import math

import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, MemorySink, NormClip
from lightning_gradguard.measurement.loss_scale import unscale_once_
from tests.models import same, weights

FUSED = pytest.mark.parametrize("fused", [False, True], ids=["not fused", "fused"])


def prepared(fused, factor=1.0):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(net(torch.ones(3, 4)).square().mean() * factor).backward()
    return net, optimizer, scaler


@FUSED
def test_gradients_are_measured_and_clipped_in_real_units_and_unscaled_once(fused):
    net, optimizer, scaler = prepared(fused)
    true = math.sqrt(sum(float((p.grad / 1024.0).square().sum()) for p in net.parameters()))
    pipeline = GradientPipeline(net, optimizer, clip=NormClip(0.1), on_nonfinite="skip", log_every_n_steps=1)
    record = pipeline.before_step(scaler=scaler)
    assert record.total_norm == pytest.approx(true, rel=1e-5)
    assert record.post_clip_norm == pytest.approx(0.1, rel=1e-4)
    assert record.loss_scale == 1024.0
    before = weights(net)
    scaler.step(optimizer)
    scaler.update()
    assert not same(weights(net), before)


@FUSED
def test_an_overflow_is_left_to_the_scaler_which_skips_and_halves(fused):
    net, optimizer, scaler = prepared(fused, factor=math.inf)
    memory = MemorySink()
    pipeline = GradientPipeline(net, optimizer, on_nonfinite="raise", sinks=[memory])
    record = pipeline.before_step(scaler=scaler)
    before = weights(net)
    scaler.step(optimizer)
    scaler.update()
    assert record.verdict == "overflow"
    assert (record.nonfinite_total, record.skipped_total) == (1, 1)
    assert same(weights(net), before)
    assert scaler.get_scale() == 512.0


def test_gradients_that_are_unscaled_already_are_left_alone():
    net, optimizer, scaler = prepared(fused=False)
    scaler.unscale_(optimizer)
    unscaled = [p.grad.clone() for p in net.parameters()]
    assert unscale_once_(scaler, optimizer)
    assert same([p.grad for p in net.parameters()], unscaled)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", enabled=False)], ids=["none", "disabled"])
def test_without_a_live_scaler_nothing_is_done(scaler):
    net, optimizer, _ = prepared(fused=False)
    scaled = [p.grad.clone() for p in net.parameters()]
    assert not unscale_once_(scaler, optimizer)
    assert same([p.grad for p in net.parameters()], scaled)
