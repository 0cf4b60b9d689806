import math

import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, count_nonfinite, measure, measure_exactly, p_norms


def measured(*grads) -> Measurement:
    """Measures parameters that carry just these gradients (``None``: no gradient)."""
    holder = nn.Module()
    for index, grad in enumerate(grads):
        like = torch.zeros(2) if grad is None else torch.zeros(grad.shape, dtype=grad.dtype)
        parameter = nn.Parameter(like)
        parameter.grad = grad
        holder.register_parameter(f"p{index}", parameter)
    return measure(Layout.from_optimizer(holder, torch.optim.SGD(holder.parameters(), lr=0.1)))


def exact(grad) -> float:
    dense = grad.to_dense() if grad.is_sparse else grad
    return float(torch.linalg.vector_norm(dense.to(torch.complex128 if dense.is_complex() else torch.float64)))


def sparse():
    indices = torch.tensor([[0, 0, 2]])  # the first row twice: its true gradient is the sum
    return torch.sparse_coo_tensor(
        indices, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), (3, 2), check_invariants=True
    )


GRADS = {
    "float32": lambda: torch.randn(5, 3),
    "float64": lambda: torch.randn(5, 3, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(50, 30).bfloat16(),
    "float16": lambda: torch.randn(50, 30).half(),
    "float16 whose norm exceeds its range": lambda: torch.full((300, 300), 300.0).half(),
    "complex64": lambda: torch.randn(5, 3, dtype=torch.complex64),
    "sparse": sparse,
    "empty": lambda: torch.zeros(0),
    "scalar": lambda: torch.tensor(-3.0),
    "transposed": lambda: torch.randn(30, 500).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "large": lambda: torch.randn(1_000_003),
    "large, not contiguous": lambda: torch.randn(500, 700).t(),
}


@pytest.mark.parametrize("make", GRADS.values(), ids=GRADS.keys())
def test_the_norm_is_the_float64_norm(make):
    grad = make()
    measurement = measured(grad)
    assert float(measurement.norms[0]) == pytest.approx(exact(grad), rel=1e-5)
    assert float(measurement.total) == pytest.approx(exact(grad), rel=1e-5)


def test_all_kinds_together_are_measured_in_order():
    grads = [make() for make in GRADS.values()]
    norms = measured(*grads).norms
    assert norms.tolist() == pytest.approx([exact(grad) for grad in grads], rel=1e-5)


def test_many_small_gradients_of_one_shape_are_each_measured():
    grads = [torch.randn(4, 4) for _ in range(20)] + [torch.randn(3) for _ in range(5)]
    assert measured(*grads).norms.tolist() == pytest.approx([exact(grad) for grad in grads], rel=1e-6)


@pytest.mark.parametrize("fill", [torch.randn, lambda n: torch.full((n,), 0.1)], ids=["noise", "constant"])
@pytest.mark.parametrize("numel", [2**13 - 1, 2**13, 2**17, 2**20 + 17, 10_000_000], ids=str)
def test_a_large_tensor_does_not_read_low(numel, fill):
    grad = fill(numel)
    assert float(measured(grad).total) == pytest.approx(exact(grad), rel=1e-5)


def test_torch_itself_reads_low_there_so_the_test_above_can_fail():
    grad = torch.randn(10_000_000)
    assert float(torch._foreach_norm([grad])[0]) != pytest.approx(exact(grad), rel=1e-4)


def test_no_gradient_is_not_a_zero_gradient():
    measurement = measured(torch.ones(2), None, torch.zeros(2))
    assert measurement.present == (True, False, True)
    assert measurement.norms.tolist() == pytest.approx([math.sqrt(2), 0.0, 0.0])


def test_nothing_to_measure_is_measured_as_nothing():
    measurement = measured(None, None)
    assert measurement.present == (False, False)
    assert measurement.total == 0.0


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
def test_a_non_finite_element_shows_in_its_own_norm_and_the_total_only(value, kind):
    bad = torch.ones(8)
    bad[3] = value
    measurement = measured(torch.ones(8), bad, torch.ones(2))
    assert measurement.norms.isfinite().tolist() == [True, False, True]
    assert not measurement.total.isfinite()
    assert count_nonfinite(bad) == ((1, 0) if kind == "nan" else (0, 1))


@pytest.mark.parametrize("scale", [1e30, 3e37, 1e-25, 1e-38], ids=str)
def test_a_second_look_is_right_where_float32_over_or_underflows(scale):
    grads = [torch.full((1000,), scale), torch.full((10,), scale)]
    first = measured(*grads)
    assert float(first.total) in (0.0, math.inf)
    second = measure_exactly(first)
    assert second.norms.tolist() == pytest.approx([exact(grad) for grad in grads], rel=1e-5)
    assert float(second.total) == pytest.approx(math.hypot(*map(exact, grads)), rel=1e-5)


def test_the_largest_element_is_found_on_demand_whatever_the_kind():
    grads = [make() for make in GRADS.values()]
    expected = [float(g.to_dense().abs().max()) if g.numel() else 0.0 for g in grads]
    assert measured(*grads).max_abs.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_other_norms_are_those_of_torch(p):
    grad = torch.randn(40, 7)
    assert float(p_norms(measured(grad), p)[0]) == pytest.approx(float(torch.linalg.vector_norm(grad, p)), rel=1e-5)


def test_scaling_a_measurement_is_measuring_the_scaled():
    grads = [torch.randn(5), torch.randn(6)]
    measurement = measured(*grads).scaled(torch.tensor([0.5, 0.25]))
    again = measured(grads[0] * 0.5, grads[1] * 0.25)
    assert torch.allclose(measurement.norms, again.norms)
    assert torch.allclose(measurement.total, again.total)


def test_measuring_leaves_gradients_and_graph_alone():
    net = nn.Linear(3, 2)
    net(torch.ones(1, 3)).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    measurement = measure(Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1)))
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))
    assert not measurement.norms.requires_grad
