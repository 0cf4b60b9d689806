import pytest
import torch
from torch import nn

from lightning_gradguard import Clip, Measurement
from lightning_gradguard.clip.clipper import Clips
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import by_layer
from lightning_gradguard.recording.since_last import Counters, SinceLast


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
    since.add(measurement, torch.stack([norms.norm(), one]), Clips(((measurement, clip),), (None,)))


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
