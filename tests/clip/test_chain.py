from __future__ import annotations

import math

import pytest
import torch

from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.chain import Chain
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.clip.value import ValueClip
from lightning_gradguard.clip.zclip import ZClip
from tests import reference
from tests.clip.bench import SHAPES, Run, layout_of


@pytest.mark.parametrize(
    "make",
    [
        lambda: [NormClip(2.0), NormClip(1.0)],
        lambda: [AdaGC(warmup=5), ZClip()],
        lambda: [ValueClip(0.2), NormClip(0.5)],
        lambda: [AGC(0.05), AutoClip(), ValueClip(0.05)],
        lambda: [NormClip(0.5), MaxClip()],
        lambda: [MaxClip(), NormClip(0.5)],
    ],
    ids=["norm-norm", "adagc-zclip", "value-norm", "agc-autoclip-value", "norm-max", "max-norm"],
)
def test_a_chain_is_its_policies_one_after_the_other(make) -> None:
    chain, parts = Run(Chain(make())), [Run(policy) for policy in make()]
    for grads in reference.gradients(2, 30):
        _, left = chain.step(grads)
        for part in parts:
            _, grads = part.step(grads)
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(left, grads, strict=True))


def test_chains_nest() -> None:
    inner = Chain([ValueClip(0.2), NormClip(0.5)])
    nested, flat = Run(Chain([inner, ValueClip(0.1)])), Run(Chain([ValueClip(0.2), NormClip(0.5), ValueClip(0.1)]))
    for grads in reference.gradients(9, 5):
        assert all(torch.equal(a, b) for a, b in zip(nested.step(grads)[1], flat.step(grads)[1], strict=True))


def test_its_state_is_flat_and_knows_what_is_per_parameter() -> None:
    run = Run(Chain([Chain([AdaGC()]), ZClip()]))
    assert set(run.state) == {"0.0.gamma", "0.0.count", "1.mean", "1.variance", "1.count"}
    assert run.policy.per_parameter == ("0.0.gamma",)


def test_an_infinity_that_clamping_hides_is_not_learned() -> None:
    run = Run(Chain([ValueClip(10.0), ZClip()]))
    run.at(1.0)
    mean = float(run.state["1.mean"])
    grads = [torch.full(shape, 0.1) for shape in SHAPES]
    grads[0][0, 0] = math.inf
    run.step(grads)
    assert float(run.state["1.mean"]) == mean


def test_each_policy_is_asked_whether_it_can_do_anything() -> None:
    run = Run(Chain([NormClip(1.0), AGC(exclude=["*"])]))
    with pytest.warns(UserWarning, match="AGC clips nothing"):
        run.policy.check(run.layout)


@pytest.mark.parametrize(
    ("first", "second"),
    [(NormClip(0.5), AGC(0.05)), (AdaGC(warmup=0), AGC(0.05)), (NormClip(0.5), ZClip(max_norm=0.01, by="value"))],
    ids=["norm-agc", "adagc-agc", "norm-zclip"],
)
def test_a_policy_sees_units_and_elements_as_the_ones_before_leave_them(first, second) -> None:
    shapes = ((30, 20), (30,), (90, 70))
    grads = [torch.randn(shape) * 3 for shape in shapes]
    last = NormClip(0.01)
    together, apart = Run(Chain([first, second, last]), layout_of(shapes)), grads
    for policy in (first, second, last):
        _, apart = Run(policy, layout_of(shapes)).step(apart)
    _, left = together.step(grads)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(left, apart, strict=True))
