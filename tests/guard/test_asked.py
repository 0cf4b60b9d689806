"""Optimizers that ask for gradients again within one step, in a loop of the user's own."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, NormClip
from lightning_gradguard.guard.asked import times_asked


class Extragradient(torch.optim.Optimizer):
    """Looks ahead, asks for the gradient there, and steps from where it was."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        for again in (True, False):
            with torch.no_grad():
                for parameter, start in zip(params, before, strict=True):
                    parameter.copy_(start - 0.1 * parameter.grad)
            if again:
                with torch.enable_grad():
                    closure()
        return loss


class StepsBetween:
    """A wrapper that is no optimizer of torch's, and steps the one in it after each of two closures."""

    def __init__(self, params, lr):
        self.optimizer = torch.optim.SGD(params, lr=lr)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def step(self, closure):
        for _ in range(2):
            loss = closure()
            self.optimizer.step()
        return loss

    def zero_grad(self):
        self.optimizer.zero_grad()


class HandsOn(StepsBetween):
    """A wrapper that hands the closure on."""

    def step(self, closure):
        return self.optimizer.step(closure)


class Once(torch.optim.SGD):
    """An optimizer of somebody's own that asks once."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


def loop(make_optimizer, steps=2, plain=0, **options):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = make_optimizer(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, **{"log_every_n_steps": 1, **options})

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(8, 4)).square().mean()
        loss.backward()
        pipeline.before_step()
        return loss

    for _ in range(plain):
        closure()
    for _ in range(steps):
        optimizer.step(closure)
    return pipeline


@pytest.mark.parametrize("action", ["skip", "rollback", "stop", "raise"])
@pytest.mark.parametrize("make", [Extragradient, StepsBetween])
def test_a_guard_refuses_the_second_closure_of_a_step_at_once(make, action):
    with pytest.raises(ValueError, match=r"closure was called again.*pass on_nonfinite=None"):
        loop(make, steps=1, on_nonfinite=action)


def test_it_is_refused_where_the_closure_comes_into_use_later_at_the_next_record():
    with pytest.raises(ValueError, match="closure was called again"):
        loop(Extragradient, plain=5, steps=5, on_nonfinite="skip", log_every_n_steps=4)


@pytest.mark.parametrize("clip", [None, NormClip(1.0)], ids=["watching", "clipping"])
def test_without_a_guard_it_is_said_once(clip):
    with pytest.warns(UserWarning, match=f"each of them is {'clipped and ' if clip else ''}counted") as said:
        pipeline = loop(Extragradient, clip=clip)
    assert len(said) == 1
    assert pipeline.counters.steps == 4


@pytest.mark.parametrize("make", [Once, HandsOn, torch.optim.AdamW, torch.optim.SGD])
def test_one_closure_for_a_step_is_none_of_its_business(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(make, steps=3, on_nonfinite="skip")


def test_a_loop_that_measures_twice_before_a_step_has_called_no_closure():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(torch.optim.SGD, plain=2, steps=0, on_nonfinite="skip")


def test_an_optimizer_that_fails_and_is_called_again_is_no_second_closure():
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, on_nonfinite="skip")

    def closure(fails):
        net(torch.ones(8, 4)).mean().backward()
        pipeline.before_step()
        if fails:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step(lambda: closure(True))
    optimizer.step(lambda: closure(False))


def test_nothing_of_the_count_outlives_the_call_nor_keeps_what_was_in_it():
    class Held:
        pass

    class Holding(torch.optim.SGD):
        def step(self, closure):
            held = Held()
            kept.append(weakref.ref(held))
            return closure()

    kept = []
    optimizer = Holding([torch.ones(1, requires_grad=True)], lr=0.1)
    asked = [optimizer.step(lambda: [times_asked([[optimizer]]), times_asked([[optimizer]])]) for _ in range(2)]
    gc.collect()
    assert asked == [[1, 2], [1, 2]]
    assert all(one() is None for one in kept)
