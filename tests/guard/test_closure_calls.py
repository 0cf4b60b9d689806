"""Optimizers that ask for gradients again within one step, in a loop of the user's own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, NormClip


class Extragradient(torch.optim.Optimizer):
    """Looks ahead, asks for the gradient there, and steps from where it was."""

    def __init__(self, params, lr=0.1):
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


class Once(torch.optim.SGD):
    """An optimizer of somebody's own that asks once."""


def loop(make_optimizer, steps=2, **options):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = make_optimizer(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, log_every_n_steps=1, **options)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(8, 4)).square().mean()
        loss.backward()
        pipeline.before_step()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return pipeline, optimizer


@pytest.mark.parametrize("action", ["skip", "rollback", "stop", "raise"])
def test_a_guard_refuses_the_second_closure_of_a_step_at_once(action):
    with pytest.raises(ValueError, match=r"closure was called again.*pass on_nonfinite=None"):
        loop(Extragradient, steps=1, on_nonfinite=action)


def test_without_a_guard_it_is_said_once():
    with pytest.warns(UserWarning, match="each of them is clipped and counted") as said:
        loop(Extragradient, clip=NormClip(1.0))
    assert len(said) == 1


@pytest.mark.parametrize("make", [Once, torch.optim.AdamW])
def test_one_closure_for_a_step_is_none_of_its_business(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(make, steps=3, on_nonfinite="skip")


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


def test_the_hooks_are_taken_off_when_the_pipeline_is_closed():
    pipeline, optimizer = loop(Once, on_nonfinite="skip")
    pipeline.close()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
