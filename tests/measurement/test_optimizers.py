"""True gradients under a loss scale on CPU, for optimizers that unscale themselves, that do not, and wrapped ones."""

import math

import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, MemorySink, NormClip
from lightning_gradguard.measurement.optimizers import Optimizers, unwrap
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
    assert Optimizers(optimizer).unscale_once_(scaler)
    assert same([p.grad for p in net.parameters()], unscaled)


def test_under_a_disabled_scaler_nothing_is_done():
    net, optimizer, _ = prepared(fused=False)
    scaled = [p.grad.clone() for p in net.parameters()]
    assert not Optimizers(optimizer).unscale_once_(torch.amp.GradScaler("cpu", enabled=False))
    assert same([p.grad for p in net.parameters()], scaled)


class Wrapper(torch.optim.Optimizer):
    """Steps what it wraps, as accelerate's and Lookahead's do."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups, self.state, self.defaults = optimizer.param_groups, optimizer.state, optimizer.defaults

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


@FUSED
@pytest.mark.parametrize("steps_with", ["wrapper", "inner"])
@pytest.mark.parametrize("unscaled_by", [None, "wrapper", "inner"])
def test_a_wrapper_and_what_it_wraps_are_unscaled_once(fused, steps_with, unscaled_by):
    """Whichever of them the scaler has unscaled before, and whichever it steps."""
    net, inner, scaler = prepared(fused)
    each = {"wrapper": Wrapper(inner), "inner": inner}
    true = math.sqrt(sum(float((p.grad / 1024.0).square().sum()) for p in net.parameters()))
    if unscaled_by is not None:
        scaler.unscale_(each[unscaled_by])
    record = GradientPipeline(net, each["wrapper"], log_every_n_steps=1).before_step(scaler=scaler)
    assert record.total_norm == pytest.approx(true, rel=1e-5)
    before = weights(net)
    scaler.step(each[steps_with])
    scaler.update()
    assert not same(weights(net), before)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(weights(net), before, strict=True)))
    assert moved == pytest.approx(0.1 * math.sqrt(5), rel=0.2)  # Adam's first step: the rate for each of 5 elements


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.optim.SGD, "got the class SGD"),
        ("adam", "optimizer must be a torch optimizer, or a wrapper with one in .optimizer; got 'adam'"),
        (None, "got None"),
    ],
    ids=["a class", "a word", "nothing"],
)
def test_what_is_no_optimizer_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        unwrap(given)


def test_no_optimizer_at_all_is_refused():
    with pytest.raises(ValueError, match="optimizer is an empty list"):
        Optimizers([])


def test_a_wrapper_at_any_depth_is_one_with_what_it_wraps():
    inner = torch.optim.SGD([torch.ones(1)], lr=0.1)
    outer = Wrapper(Wrapper(inner))
    optimizers = Optimizers(outer)
    assert optimizers.plain == [inner]
    assert all(layer in optimizers for layer in (outer, outer.optimizer, inner))
    assert torch.optim.SGD([torch.ones(1)], lr=0.1) not in optimizers
