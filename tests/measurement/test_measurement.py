import math

import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, count_nonfinite, measure, measure_exactly, p_norms
from lightning_gradguard.measurement.needs import Needs
from lightning_gradguard.measurement.units import WHOLE, Units
from tests.counting import Counting

ROWS, COLUMNS = Units((1,)), Units((0,))


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


def layers(num: int = 3) -> Layout:
    net = nn.ModuleList([nn.Linear(50, 90) for _ in range(num)])
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    groups = [{"params": list(layer.parameters())} for layer in net]
    return Layout.from_optimizer(net, torch.optim.SGD(groups, lr=0.1))


class Asking:
    """Says what it needs, as a policy would."""

    def __init__(self, *units):
        self.units = units

    def needs(self, layout):
        return Needs(units=self.units)


def units_of(measurement, asking):
    """The norms of the units of each parameter."""
    (found,) = measurement.by_unit(asking)
    return dict(found.spread(found.norms))


def test_units_that_are_needed_are_found_in_the_one_pass_from_the_first_step_on():
    layout, asking = layers(), Asking(*[ROWS, None] * 3)
    with Counting() as alone:
        measure(layout)
    for _ in range(2):
        with Counting() as counted:
            measurement = measure(layout, Needs.of([asking], layout))
            found = units_of(measurement, asking)
        assert counted.read < alone.read + 20 * 3 * 90
        assert found.keys() == {0, 2, 4}
        for index, norms in found.items():
            assert torch.allclose(norms.flatten(), layout.params[index].grad.norm(dim=1))
    assert torch.allclose(measurement.norms, measure(layout).norms)


def test_units_that_nobody_declared_are_the_same_at_the_price_of_another_read():
    layout, asking = layers(), Asking(*[ROWS, None] * 3)
    declared = units_of(measure(layout, Needs.of([asking], layout)), asking)
    late = units_of(measure(layout), asking)
    assert all(torch.equal(declared[index], late[index]) for index in (0, 2, 4))


def test_asking_changes_nothing_for_the_next_measurement():
    layout, asking = layers(), Asking(*[ROWS, None] * 3)
    with Counting() as before:
        measure(layout)
    with Counting() as before:
        measure(layout)
    measure(layout).by_unit(asking)
    with Counting() as after:
        measure(layout)
    assert after.calls == before.calls


def test_two_who_see_one_parameter_differently_get_each_their_own_units():
    layout = layers()
    rows, columns = Asking(*[ROWS, WHOLE] * 3), Asking(*[COLUMNS, None] * 3)
    both = Needs.of([Wrapping(columns, rows)], layout)
    for _ in range(2):
        measurement = measure(layout, both)
        by_row, by_column = units_of(measurement, rows), units_of(measurement, columns)
        for index in (0, 2, 4):
            grad = layout.params[index].grad
            assert torch.allclose(by_row[index].flatten(), grad.norm(dim=1))
            assert torch.allclose(by_column[index].flatten(), grad.norm(dim=0))
            assert torch.allclose(by_row[index + 1], layout.params[index + 1].grad.norm())


class Wrapping:
    """Asks others, as a chain does."""

    def __init__(self, *others):
        self.others = others

    def needs(self, layout):
        return Needs.of(self.others, layout)


def test_who_hands_on_the_needs_of_another_needs_no_second_read():
    layout, asking = layers(), Asking(*[ROWS, None] * 3)

    class HandingOn:
        def needs(self, layout):
            return asking.needs(layout)

    needs = Needs.of([HandingOn()], layout)
    measure(layout, needs)
    measurement = measure(layout, needs)
    with Counting() as counted:
        measurement.by_unit(asking)
    assert counted.num_calls == 0


def test_parts_find_their_units_in_the_pass_over_the_whole():
    layout = layers()
    groups = [[i for i, own in enumerate(layout.group_of) if own == group] for group in range(3)]
    asking = Asking(ROWS, WHOLE)  # one policy for all groups
    parts = [layout.subset(indices) for indices in groups]
    needs = [Needs.of([asking], part).within(indices) for part, indices in zip(parts, groups, strict=True)]
    together = Needs.together(needs)
    for _ in range(2):
        measurement = measure(layout, together)
        for indices, part, own in zip(groups, parts, needs, strict=True):
            with Counting() as counted:
                found = units_of(measurement.part(part, indices, own), asking)
            assert counted.read < 90 * 50 / 10
            assert torch.allclose(found[0].flatten(), layout.params[indices[0]].grad.norm(dim=1))
            assert torch.allclose(found[1], layout.params[indices[1]].grad.norm())


def test_units_of_weights_come_in_the_order_of_those_of_gradients():
    layout, asking = layers(), Asking(*[ROWS, WHOLE] * 3)
    layout.params[2].grad = None
    (found,) = measure(layout).by_unit(asking)
    weights = dict(found.spread(found.weights))
    assert weights.keys() == {0, 1, 3, 4, 5}
    assert torch.allclose(weights[4].flatten(), layout.params[4].detach().norm(dim=1))
    assert torch.allclose(weights[3], layout.params[3].detach().norm())


def test_what_is_asked_of_a_scaled_measurement_is_scaled_too():
    measurement = measured(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([2.0]))
    for coefficient in (torch.tensor(0.5), torch.tensor([0.5, 0.5])):
        scaled = measurement.scaled(coefficient)
        assert scaled.max_abs.tolist() == [4.0, 1.0]
        (found,) = scaled.by_unit(Asking(ROWS, None))
        assert found.norms.tolist() == pytest.approx([2.5, 5.0])
        assert found.scaled(coefficient).norms.tolist() == pytest.approx([1.25, 2.5])


def test_odd_gradients_are_scaled_like_others():
    rows = torch.sparse_coo_tensor([[0, 2]], [[3.0, 4.0], [6.0, 8.0]], (4, 2), check_invariants=True)
    for coefficient in (torch.tensor(0.5), torch.tensor([0.5])):
        (found,) = measured(rows).scaled(coefficient).by_unit(Asking(ROWS))
        assert found.norms.tolist() == pytest.approx([2.5, 5.0])
        assert found.weights.numel() == 2
