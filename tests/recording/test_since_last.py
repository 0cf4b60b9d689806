from functools import partial

import pytest
import torch
from torch import nn

from lightning_gradguard import AGC, Clip, GradientPipeline, Measurement, ValueClip
from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import by_layer
from lightning_gradguard.recording.since_last import Counters, SinceLast
from tests.clip.policies import ALL


def layout():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    return Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_layer_is_the_root_of_its_squares_even_where_squares_vanish_in_float32():
    norms = torch.tensor([3e-30, 4e-30, 3e25, 4e25])
    assert torch.allclose(by_layer(layout(), norms), torch.tensor([5e-30, 5e25], dtype=torch.float64))


def add(since, norms, coefficient=1.0, *, scaled=True):
    """One step: its norms, and by how much it is scaled, or whether it is clamped."""
    measurement = Measurement(since.layout, (None,) * len(norms), norms, norms.norm())
    one = torch.tensor(coefficient)
    clip = Clip(torch.tensor(1.0), coefficient=one) if scaled else Clip(torch.tensor(1.0), bound=1.0)
    since.add(measurement, torch.stack([norms.norm(), one]), Clips.of(norms.norm(), [(measurement, clip)]))


@pytest.mark.parametrize("num_steps", [1, 31, 32, 33, 100])
def test_the_fold_keeps_largest_norms_and_smallest_coefficients(num_steps):
    generator = torch.Generator().manual_seed(num_steps)
    steps, coefficients = torch.rand(num_steps, 4, generator=generator), torch.rand(num_steps, generator=generator) * 2
    since = SinceLast(layout(), torch.device("cpu"))
    for norms, coefficient in zip(steps, coefficients.clamp(max=1.0), strict=True):
        add(since, norms, float(coefficient))
    since.fold()
    layers = torch.stack([steps[:, :2].norm(dim=1), steps[:, 2:].norm(dim=1)], dim=1)
    assert torch.allclose(since.max_layer_norms, layers.amax(0).double())
    assert float(since.max_total_norm) == pytest.approx(float(steps.norm(dim=1).max()))
    assert float(since.min_coefficient) == pytest.approx(float(coefficients.clamp(max=1.0).min()))
    assert int(since.num_clipped) == int((coefficients < 1.0).sum())


def test_a_step_that_is_not_finite_enters_the_counts_only():
    since = SinceLast(layout(), torch.device("cpu"))
    bad = torch.tensor([1.0, float("nan"), float("inf"), 1.0])
    add(since, bad, 0.1)
    since.fold()
    assert since.max_layer_norms.tolist() == [0.0, 0.0]
    assert float(since.min_coefficient) == 1.0
    assert int(since.num_clipped) == 0
    assert int(since.num_nonfinite) == 1


def test_clipping_that_is_no_scaling_is_counted_and_has_no_coefficient():
    since = SinceLast(layout(), torch.device("cpu"))
    add(since, torch.ones(4), 0.0, scaled=False)
    since.fold()
    assert int(since.num_clipped) == 1
    assert float(since.min_coefficient) == 1.0


def test_a_fold_over_other_layers_is_dropped_and_one_over_the_same_goes_on():
    since = SinceLast(layout(), torch.device("cpu"))
    add(since, torch.ones(4), scaled=False)
    state = since.state_dict()
    other = SinceLast(layout(), torch.device("cpu"))
    other.load_state_dict(state)
    assert repr(other.state_dict()) == repr(state)
    other.reset()
    other.load_state_dict({**state, "layers": ["something", "else"]})
    assert other.num_steps == 0


def test_counters_round_trip():
    counters = Counters(steps=5, skipped=1, clipped=torch.tensor(2.0), nonfinite=1.0)
    other = Counters()
    other.load_state_dict(counters.state_dict())
    assert other == Counters(5, 1, 2.0, 1.0)


def gradients(step):
    """Those of two layers at one step: a spike at the tenth, in single elements of the first layer."""
    generator = torch.Generator().manual_seed(step)
    grads = [0.3 + 0.1 * torch.randn(shape, generator=generator) for shape in ((3, 2), (3,), (1, 3), (1,))]
    grads[0][0] *= 40.0 if step == 10 else 1.0
    return grads


def recorded(policy, *, every, resume_at=None, guard=None, groups=False):
    """Fifteen steps, and what the records say; at one of them the pipeline is made anew from its state."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD([{"params": list(part.parameters()), "name": str(i)} for i, part in enumerate(net)])
    clip = {"0": policy} if groups else policy
    made = partial(GradientPipeline, net, optimizer, clip=clip, on_nonfinite=guard, log_every_n_steps=every, rules=[])
    pipeline, records = made(), []
    for step in range(15):
        if step == resume_at:
            state, pipeline = pipeline.state_dict(), made()
            pipeline.load_state_dict(state)
        for parameter, grad in zip(net.parameters(), gradients(step), strict=True):
            parameter.grad = grad.clone()
        records.append(pipeline.before_step())
    return [record for record in records if record is not None]


def smallest(records):
    """The smallest coefficient of the whole and of each layer over all of them."""
    each = [r.min_layer_coefficients or (r.min_coefficient,) * 2 for r in records]
    return [min(r.coefficient for r in records), *(min(column) for column in zip(*each, strict=True))]


@pytest.mark.parametrize("groups", [False, True], ids=["whole", "one group"])
@pytest.mark.parametrize("resume_at", [None, 12], ids=["straight", "resumed"])
@pytest.mark.parametrize("guard", [None, "skip"])
@pytest.mark.parametrize("policy", ALL.values(), ids=ALL)
def test_the_smallest_coefficients_are_those_of_all_steps_whatever_clips(policy, guard, resume_at, groups):
    each = recorded(policy(), every=1, guard=guard, groups=groups)
    (record,) = recorded(policy(), every=15, guard=guard, resume_at=resume_at, groups=groups)
    assert record.min_coefficient == pytest.approx(min(r.coefficient for r in each), rel=1e-5)
    assert [record.min_coefficient, *(record.min_layer_coefficients or (record.min_coefficient,) * 2)] == pytest.approx(
        smallest(each), rel=1e-5
    )


@pytest.mark.parametrize("policy", [lambda: ValueClip(0.5), lambda: AGC(0.05)], ids=["ValueClip", "AGC"])
def test_what_was_folded_is_told_by_a_record_that_clips_nothing_itself(policy):
    """A dropped step, and the end of a run."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pipeline = GradientPipeline(net, optimizer, clip=policy(), on_nonfinite="skip", log_every_n_steps=100, rules=[])
    for step in (10, 11):
        for parameter, grad in zip(net.parameters(), gradients(10), strict=True):
            parameter.grad = grad.clone() * (float("nan") if step == 11 else 1.0)
        record = pipeline.before_step()
    assert record.verdict == "skipped"
    assert 0.0 < record.min_coefficient < 0.2 and record.min_layer_coefficients[0] < 0.2
