"""What policies declare is found in the one pass, each for itself, and asking changes nothing."""

import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from lightning_gradguard.measurement.needs import NOTHING, Needs
from lightning_gradguard.measurement.units import WHOLE, Units
from tests.counting import Counting
from tests.measurement.test_measurement import measured

ROWS, COLUMNS = Units((1,)), Units((0,))


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
    measure(layout)  # plans
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


def test_nothing_is_needed_by_those_who_say_nothing():
    assert not NOTHING.leaves
    assert not Needs.of([Asking(None, None)], layers()).leaves


def test_two_who_need_the_same_each_get_it_from_one_read():
    layout, alike = layers(), [Asking(*[ROWS, WHOLE] * 3) for _ in range(2)]
    read = []
    for asking in (alike[:1], alike):
        needs = Needs.of(asking, layout)
        measure(layout, needs)
        with Counting() as counted:
            measurement = measure(layout, needs)
        read.append(counted.read)
    assert read[1] - read[0] < 2 * sum(p.shape[0] + 1 for p in layout.params)  # the numbers found, not the gradients
    first, second = (measurement.by_unit(one)[0].norms for one in alike)
    assert torch.equal(first, second)
