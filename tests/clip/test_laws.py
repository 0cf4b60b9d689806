"""What holds for every policy."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_gradguard import AdaGC, GradientPipeline, NormClip
from lightning_gradguard.clip.answer import as_on_a_device
from lightning_gradguard.clip.apply import after, apply_, cosine, is_clipped
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.measurement.layout import Layout
from tests import reference
from tests.clip.bench import SHAPES, Run, layout_of
from tests.clip.policies import ADAPTIVE, ALL
from tests.counting import Counting

Make = Callable[[], ClipPolicy]
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
every_adaptive = pytest.mark.parametrize("make", ADAPTIVE.values(), ids=ADAPTIVE.keys())
both = pytest.mark.parametrize("arithmetic", [nullcontext, as_on_a_device], ids=["host", "device"])
RISES = (1.2, 1.5, 2.0, 3.0, 10.0)


def grads_of(level: float, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [grad * (level / reference.norm(grads)) for grad in grads]


def feed(run: Run, num_steps: int, level: float = 1.0, noise: float = 0.05, seed: int = 0) -> float:
    """Runs steps of one level with lognormal noise; returns the fraction of tensors and steps that were clipped."""
    generator = torch.Generator().manual_seed(seed)
    clipped = 0
    for step in range(num_steps):
        factor = math.exp(noise * float(torch.randn((), generator=generator)))
        grads = grads_of(level * factor, seed=seed * 100_000 + step)
        _, left = run.step(grads)
        clipped += sum(not torch.equal(a, b) for a, b in zip(grads, left, strict=True))
    return clipped / (num_steps * len(SHAPES))


@every
def test_no_element_grows_and_none_changes_sign(make: Make) -> None:
    run = Run(make())
    for grads in reference.gradients(3, 60):
        _, left = run.step(grads)
        for before, now in zip(grads, left, strict=True):
            assert (now.abs() <= before.abs() * (1.0 + 1e-6)).all()
            assert (now * before >= 0.0).all()


@every
def test_what_is_predicted_is_what_is_applied(make: Make) -> None:
    run = Run(make())
    for grads in reference.gradients(4, 40):
        measurement = run.measure(grads)
        clip = run.policy.decide(measurement, run.state)
        predicted, changed = after(measurement, clip), bool(is_clipped(measurement, clip))
        turned = float(cosine(measurement, predicted))
        apply_(measurement, clip)
        left = [parameter.grad for parameter in run.layout.params]
        assert float(predicted.total) == pytest.approx(reference.norm(left), rel=1e-5)
        assert changed == any(not torch.equal(a, b) for a, b in zip(grads, left, strict=True))
        inner = sum(float((a.double() * b.double()).sum()) for a, b in zip(grads, left, strict=True))
        assert turned == pytest.approx(inner / (reference.norm(grads) * reference.norm(left)), abs=1e-5)


@every
def test_a_step_at_or_below_the_threshold_is_left_alone(make: Make) -> None:
    run, idle = Run(make()), 0
    for step in range(60):
        grads = grads_of(0.3 * math.exp(math.sin(step)), seed=step)
        measurement = run.measure(grads)
        clip = run.policy.decide(measurement, run.state)
        level = measurement.total if clip.coefficient is not None else measurement.max_abs.max()
        if clip.threshold is not None and clip.then is None and level <= clip.threshold * (1.0 - 1e-5):
            idle += 1
            apply_(measurement, clip)
            assert all(torch.equal(p.grad, grad) for p, grad in zip(run.layout.params, grads, strict=True))
            assert not is_clipped(measurement, clip)
    assert idle or clip.threshold is None or clip.then is not None


@both
@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30], ids=["nan", "inf", "-inf", "overflow"])
def test_nothing_that_is_not_finite_enters_the_state(make: Make, bad: float, arithmetic: Any) -> None:
    with arithmetic():
        run = Run(make())
        feed(run, 10)
        before = run.memory
        grads = grads_of(1.0)
        grads[0][1, 2] = bad
        run.step(grads)
        assert all(torch.equal(value, before[key]) for key, value in run.memory.items())


@both
@every
def test_a_run_that_begins_with_bad_steps_is_a_run_without_them(make: Make, arithmetic: Any) -> None:
    with arithmetic():
        run, clean = Run(make()), Run(make())
        for bad in (math.nan, math.inf, math.nan):
            run.step([grad * bad for grad in grads_of(1.0)])
        feed(run, 30)
        feed(clean, 30)
        assert all(torch.equal(value, clean.memory[key]) for key, value in run.memory.items())


@both
@every
def test_the_state_is_a_flat_dict_that_resumes_bit_for_bit(make: Make, arithmetic: Any) -> None:
    with arithmetic():
        straight, first = Run(make()), Run(make())
        sequence = list(reference.gradients(6, 60))
        for grads in sequence[:30]:
            straight.step(grads)
            first.step(grads)
        resumed = Run(make())
        assert {key: value.shape for key, value in resumed.memory.items()} == {
            key: value.shape for key, value in first.memory.items()
        }
        resumed.state = copy.deepcopy(first.state)
        for grads in sequence[30:]:
            for one, other in zip(straight.step(grads)[1], resumed.step(grads)[1], strict=True):
                assert torch.equal(one, other)
        kept = {key: value for key, value in resumed.state.items() if isinstance(value, Tensor)}
        assert kept.keys() | set(resumed.policy.single) == resumed.state.keys()
        assert all(value.dtype in (torch.float32, torch.int64) for value in kept.values())


@every
def test_state_per_parameter_is_named(make: Make) -> None:
    run = Run(make())
    per_parameter = {key for key, value in run.memory.items() if value.shape[:1] == (len(SHAPES),)}
    assert per_parameter == set(run.policy.per_parameter)


@every
def test_one_policy_serves_two_optimizers(make: Make) -> None:
    policy = make()
    settings = dict(vars(policy))
    one, two, alone = Run(policy), Run(policy), Run(make())
    for grads in reference.gradients(7, 20):
        one.step(grads)
        two.step([grad * 100.0 for grad in grads])
        alone.step(grads)
    assert all(torch.equal(value, alone.memory[key]) for key, value in one.memory.items())
    assert vars(policy) == settings


@functools.cache
def settled(make: Make) -> tuple[float, dict[str, Any]]:
    """How often a policy clips at rest, and its state then."""
    run = Run(make())
    feed(run, 200)
    return max(feed(run, 100, seed=1), 0.01), run.state


@every_adaptive
@pytest.mark.parametrize("rise", RISES)
def test_a_lasting_rise_is_followed_within_200_steps(make: Make, rise: float) -> None:
    usual, state = settled(make)
    run = Run(make())
    run.state = dict(state)
    feed(run, 200, level=rise, seed=2)
    now = feed(run, 100, level=rise, seed=3)
    assert now <= usual * 1.15 + 0.02


@every_adaptive
def test_a_lasting_fall_is_followed_within_300_steps(make: Make) -> None:
    run = Run(make())
    feed(run, 200)
    feed(run, 300, level=0.1, seed=1)
    assert run.norm_after(10.0) < 0.5


@every_adaptive
def test_an_explosion_in_the_first_steps_is_not_learned_as_normal(make: Make) -> None:
    run = Run(make())
    feed(run, 3)
    for power in range(5):
        run.step(grads_of(10.0 ** (2 + power)))
    assert run.norm_after(1e6) < 10.0


@every_adaptive
def test_equal_norms_do_not_make_the_next_step_a_spike(make: Make) -> None:
    run = Run(make())
    for _ in range(150):
        run.step(grads_of(1.0))
    left = run.step(grads_of(1.02))[1]
    assert reference.norm(left) >= 0.999


@every_adaptive
def test_a_spike_is_cut_to_about_the_usual_norm(make: Make) -> None:
    run = Run(make())
    feed(run, 150)
    assert run.norm_after(1000.0) < 3.0


@every
@pytest.mark.parametrize("flush", [False, True], ids=["subnormals kept", "subnormals flushed"])
def test_a_norm_that_overflows_keeps_its_direction(make: Make, flush: bool) -> None:
    torch.set_flush_denormal(flush)
    run = Run(make())
    feed(run, 20)
    grads = [torch.full(shape, 1e30) for shape in SHAPES]
    left = torch.cat([grad.flatten() for grad in run.step(grads)[1]])
    assert left.isfinite().all()
    assert (left > 0.0).all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=["fp16", "bf16", "fp64"])
def test_the_decision_does_not_depend_on_the_dtype(make: Make, dtype: torch.dtype) -> None:
    wide, narrow = Run(make()), Run(make(), layout_of(dtype=dtype))
    for grads in reference.gradients(8, 40):
        rounded = [(grad * 0.1).clamp(-6e4, 6e4).to(dtype).float() for grad in grads]
        expected, _ = wide.step(rounded)
        clip, _ = narrow.step(rounded)
        for key in ("threshold", "coefficient"):
            one, other = getattr(expected, key), getattr(clip, key)
            assert (one is None) == (other is None)
            if one is not None:
                one, other = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
                assert torch.allclose(one, other, rtol=1e-5)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets torch's default dtype for one test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def everything_of_a_run(policy: ClipPolicy, layout: Layout, sequence: Sequence[list[Tensor]]) -> list[Tensor]:
    run, left = Run(policy, layout), []
    for grads in sequence:
        left += [grad.clone() for grad in run.step(grads)[1]]
    return [*left, *run.memory.values()]


@both
@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=["fp16", "bf16", "fp64"])
def test_nothing_depends_on_the_default_dtype(
    make: Make, dtype: torch.dtype, default_dtype: Any, arithmetic: Any
) -> None:
    with arithmetic():
        sequence, layout = list(reference.gradients(8, 30)), layout_of()
        expected = everything_of_a_run(make(), layout, sequence)
        default_dtype(dtype)
        found = everything_of_a_run(make(), layout, sequence)
        assert [value.dtype for value in found] == [value.dtype for value in expected]
        assert all(torch.equal(value, right) for value, right in zip(found, expected, strict=True))


@both
@every
def test_missing_and_zero_gradients_do_no_harm(make: Make, arithmetic: Any) -> None:
    with arithmetic():
        run = Run(make())
        nothing: list[Tensor | None] = [None, None, None]
        run.step(nothing)
        run.step([torch.zeros(shape) for shape in SHAPES])
        for step in range(20):
            grads: list[Tensor | None] = list(grads_of(1.0, seed=step))
            grads[step % 3] = None
            _, left = run.step(grads)
            assert [grad is None for grad in left] == [grad is None for grad in grads]
        _, left = run.step(grads_of(1.0))
        assert all(grad.isfinite().all() and grad.any() for grad in left)


@every
def test_no_policy_reads_a_value_of_a_device_on_the_host(make: Make) -> None:
    with as_on_a_device():
        run = Run(make())
        feed(run, 5)
        for level in (1.0, 1000.0):
            measurement = run.measure(grads_of(level))
            with Counting() as counted, torch.no_grad():
                clip = run.policy.decide(measurement, run.state)
                is_clipped(measurement, clip)
                apply_(measurement, clip)
            assert counted.host_reads == 0


def everything_on_the_way(make: Make) -> Iterator[list[Tensor]]:
    run = Run(make())
    for grads in reference.gradients(9, 120):
        yield [*run.step(grads)[1], *run.memory.values()]


@every
def test_both_arithmetics_decide_alike(make: Make) -> None:
    on_host = list(everything_on_the_way(make))
    with as_on_a_device():
        on_device = list(everything_on_the_way(make))
    for one, other in zip(on_host, on_device, strict=True):
        for value, same in zip(one, other, strict=True):
            torch.testing.assert_close(value, same, rtol=1e-5, atol=1e-7)


@every
def test_a_policy_runs_where_values_do_not_exist(make: Make) -> None:
    with FakeTensorMode():
        run = Run(make())
        run.step([torch.ones(shape) for shape in SHAPES])
        clip, _ = run.step([torch.ones(shape) for shape in SHAPES])
        is_clipped(run.measure([torch.ones(shape) for shape in SHAPES]), clip)


OVERFLOWS = [
    (torch.float32, 1e25, 8),
    (torch.float32, 2e19, 300),
    (torch.float32, 3e38, 8),
    (torch.float32, 3e38, 10_000),
    (torch.float64, 1e100, 8),
    (torch.float64, 1e200, 8),
]


@both
@pytest.mark.parametrize("on_nonfinite", [None, "skip"])
@pytest.mark.parametrize("threshold", [0.5, 1e-4])
@pytest.mark.parametrize(("dtype", "value", "size"), OVERFLOWS)
def test_a_norm_that_overflows_is_clipped_to_its_threshold(
    arithmetic: Any, on_nonfinite: Any, threshold: float, dtype: torch.dtype, value: float, size: int
) -> None:
    with arithmetic():
        net = nn.Linear(size, 1, bias=False, dtype=dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pipeline = GradientPipeline(net, optimizer, NormClip(threshold), on_nonfinite, log_every_n_steps=1)
        net.weight.grad = torch.full_like(net.weight, value)
        record = pipeline.before_step()
    assert net.weight.grad is not None and record is not None
    assert float(net.weight.grad.double().norm()) == pytest.approx(threshold, rel=1e-5)
    assert record.verdict == "clipped"
    assert record.post_clip_norm == pytest.approx(threshold, rel=1e-5)


BY_NORM = {key: make for key, make in ALL.items() if key.startswith(("NormClip", "ZClip", "AutoClip", "QuantileClip"))}


@both
@pytest.mark.parametrize("make", BY_NORM.values(), ids=BY_NORM.keys())
def test_what_is_left_of_a_norm_that_nobody_measures_again_is_never_above_the_threshold(
    make: Make, arithmetic: Any
) -> None:
    with arithmetic():
        run = Run(make())
        feed(run, 20)
        for value in (2e19, 1e30, 1e38):
            clip, left = run.step([torch.full(shape, value) for shape in SHAPES])
            if clip.coefficient is None or clip.coefficient.dim():
                continue
            assert clip.threshold is not None
            assert 0.0 < reference.norm([grad.double() for grad in left]) <= 1.001 * float(clip.threshold)


@pytest.mark.parametrize("make", [lambda: NormClip(0.5), lambda: AdaGC(warmup_max_norm=0.5)], ids=["NormClip", "AdaGC"])
def test_narrow_gradients_beside_one_of_double_precision_are_clipped_with_it(make: Make) -> None:
    dtypes = (torch.float64, torch.float32, torch.complex64)
    net = nn.ParameterList([torch.zeros(8, dtype=dtype) for dtype in dtypes])
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), make())
    for parameter in net:
        parameter.grad = torch.full_like(parameter, 3e38)
    pipeline.before_step()
    left = [parameter.grad for parameter in net if parameter.grad is not None]
    assert float(torch.nn.utils.get_total_norm(left)) == pytest.approx(0.5, rel=1e-6)
    assert [float(grad.abs()[0]) for grad in left] == [pytest.approx(0.5 / math.sqrt(24), rel=1e-6)] * 3
