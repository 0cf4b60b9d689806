import torch
from torch import nn

from lightning_gradguard.layout import Layout
from lightning_gradguard.window import Counters, Window, by_layer


def layout():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    return Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_layer_is_the_root_of_its_squares_even_where_squares_vanish_in_float32():
    norms = torch.tensor([3e-30, 4e-30, 3e25, 4e25])
    assert torch.allclose(by_layer(layout(), norms), torch.tensor([5e-30, 5e25], dtype=torch.float64))


def test_the_fold_keeps_largest_norms_and_smallest_coefficients():
    window = Window(layout(), torch.device("cpu"))
    for norms, coefficient in (([3.0, 4.0, 0.0, 1.0], 0.5), ([0.0, 1.0, 6.0, 8.0], 0.25), ([0.1] * 4, 1.0)):
        vector = torch.tensor(norms)
        window.add(vector, vector.norm(), torch.tensor(coefficient), None)
    assert window.max_layer_norms.tolist() == [5.0, 10.0]
    assert float(window.min_coefficient) == 0.25


def test_a_step_that_is_not_finite_enters_nothing():
    window = Window(layout(), torch.device("cpu"))
    bad = torch.tensor([1.0, float("nan"), float("inf"), 1.0])
    window.add(bad, bad.norm(), torch.tensor(0.1), torch.tensor(False))
    assert window.max_layer_norms.tolist() == [0.0, 0.0]
    assert float(window.min_coefficient) == 1.0


def test_a_fold_over_other_layers_is_dropped_and_one_over_the_same_goes_on():
    window = Window(layout(), torch.device("cpu"))
    window.see((True, False, True, True))
    window.add(torch.ones(4), torch.tensor(2.0), None, None)
    state = window.state_dict()
    other = Window(layout(), torch.device("cpu"))
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
