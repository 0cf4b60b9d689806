from __future__ import annotations

import math

import pytest
import torch

from lightning_gradguard.clip.norm import NormClip
from tests import reference
from tests.clip.bench import Run


@pytest.mark.parametrize("level", [1e-3, 0.5, 1.0, 7.0, 1e6])
def test_it_gives_the_bits_of_torchs_own_clipping(level: float) -> None:
    grads = [grad * level for grad in next(iter(reference.gradients(1, 1)))]
    _, left = Run(NormClip(1.0)).step(grads)
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(parameters, left, strict=True))


def test_an_infinite_ceiling_never_makes_a_nan_of_a_gradient() -> None:
    run = Run(NormClip(math.inf))
    for level in (0.0, 1.0, 1e30):
        grads = [torch.full(p.shape, level) for p in run.layout.params]
        _, left = run.step(grads)
        assert all(torch.equal(grad, was) for grad, was in zip(left, grads, strict=True))


def test_one_infinite_element_spoils_no_other() -> None:
    run = Run(NormClip(math.inf))
    grads = [torch.ones(p.shape) for p in run.layout.params]
    grads[1][2] = math.inf
    _, left = run.step(grads)
    assert all(torch.equal(grad, was) for grad, was in zip(left, grads, strict=True))
