import pytest
import torch

from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.units import WHOLE, Units, Wanted, norms_of_pieces

ROWS, COLUMNS = Units((1,)), Units((0,))
GROUPED = Units((1, 3), view=(2, 2, 3, 5))  # of a transposed convolution [4, 3, 5] with two groups
# units, shape of a parameter, dimensions of the units in its view
KINDS = {
    "whole": (WHOLE, (3, 4), (0, 1)),
    "scalar": (WHOLE, (), ()),
    "rows": (ROWS, (6, 5), (1,)),
    "rows of a convolution": (Units((1, 2, 3)), (6, 5, 3, 3), (1, 2, 3)),
    "columns": (COLUMNS, (6, 5), (0,)),
    "groups": (GROUPED, (4, 3, 5), (1, 3)),
    "large rows": (ROWS, (70, 300), (1,)),
    "large columns": (COLUMNS, (70, 300), (0,)),
    "long rows": (ROWS, (3, 2**13), (1,)),
    "long uneven rows": (ROWS, (3, 2**13 + 7), (1,)),
    "many rows": (ROWS, (2**13 + 1, 2), (1,)),
}


def expected(units, tensor, dims):
    seen = tensor.double().view(units.view or tensor.shape)
    return (torch.linalg.vector_norm(seen, dim=dims) if dims else seen.abs()).flatten()


@pytest.mark.parametrize(("units", "shape", "dims"), KINDS.values(), ids=KINDS)
def test_each_unit_is_measured(units, shape, dims):
    tensor = torch.randn(shape)
    found = units.norms(tensor)
    assert found.numel() == units.count(shape)
    assert torch.allclose(found.double(), expected(units, tensor, dims), rtol=1e-5)


@pytest.mark.parametrize("num", [1, 3, 6])
@pytest.mark.parametrize("only_units", [False, True])
def test_one_pass_measures_tensors_and_their_units(num, only_units):
    kinds = [kind for kind in KINDS.values() for _ in range(num)]
    norms = Norms([Wanted(tuple(units for units, _, _ in kinds))])
    for _ in range(2):  # planned, and by the plan
        tensors = [torch.randn(shape) for _, shape, _ in kinds]
        whole, (units,) = (None, [norms.of_units(tensors)]) if only_units else norms.with_units(tensors)
        right = [expected(units, tensor, dims) for tensor, (units, _, dims) in zip(tensors, kinds, strict=True)]
        order = [index for block in units.order.blocks for index in block.indices]
        assert sorted(order) == list(range(len(kinds)))
        assert torch.allclose(units.norms.double(), torch.cat([right[i] for i in order]), rtol=1e-5)
        if whole is not None:
            assert torch.allclose(whole.double(), torch.stack([each.norm() for each in right]), rtol=1e-5)


@pytest.mark.parametrize("fill", [torch.randn, lambda *shape: torch.full(shape, 0.1)], ids=["noise", "constant"])
@pytest.mark.parametrize("shape", [(50_257, 64), (3, 1_000_003), (20_000, 3)], ids=str)
def test_a_norm_made_of_units_does_not_read_low(shape, fill):
    tensor = fill(*shape)
    norms, (units,) = Norms([Wanted((ROWS,))]).with_units([tensor])
    assert float(norms) == pytest.approx(float(torch.linalg.vector_norm(tensor.double())), rel=1e-5)
    assert torch.allclose(units.norms.double(), torch.linalg.vector_norm(tensor.double(), dim=1), rtol=1e-5)


def test_rows_that_do_not_lie_apart_do_not_make_the_norm():
    tensor = torch.full((8000, 8000), 0.1).t()  # a sum over such a row adds up one by one, and reads low
    norms, _ = Norms([Wanted((ROWS,))]).with_units([tensor])
    assert float(norms) == pytest.approx(800.0, rel=1e-5)


CHANGES = {
    "another number of units": lambda: [torch.ones(9, 500), torch.ones(5)],
    "fewer dimensions": lambda: [torch.ones(5000), torch.ones(5)],
    "one goes": lambda: [None, torch.ones(5)],
    "half": lambda: [torch.full((10, 500), 300.0).half(), torch.ones(5)],
    "double": lambda: [torch.ones(10, 500).double(), torch.ones(5).double()],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_units_are_planned_anew_where_they_no_longer_fit(change):
    norms = Norms([Wanted((ROWS, WHOLE))])
    norms.with_units([torch.ones(10, 500), torch.ones(5)])
    tensors = change()
    norms.wanted = [Wanted((ROWS if tensors[0] is not None and tensors[0].dim() == 2 else WHOLE, WHOLE))]
    whole, (units,) = norms.with_units(tensors)
    assert whole.tolist() == pytest.approx([0.0 if t is None else float(t.double().norm()) for t in tensors], rel=1e-5)
    assert units.norms.numel() == sum(block.num_each for block in units.order.blocks)


def test_everybody_gets_their_own_units_in_their_own_order():
    shapes = [(2, 3), (4, 3), (2, 3), (5,)]
    tensors = [torch.randn(shape) for shape in shapes]
    part = Wanted((ROWS, COLUMNS, WHOLE), (1, 2, 3))  # another kind for one of them
    _, (everything, own) = Norms([Wanted((ROWS, ROWS, ROWS, WHOLE)), part]).with_units(tensors)
    alone = Norms([Wanted(part.units)]).of_units(tensors[1:])
    assert torch.equal(own.norms, alone.norms)
    assert [block.indices for block in own.order.blocks] == [block.indices for block in alone.order.blocks]
    assert everything.norms.numel() == 2 + 4 + 2 + 1


@pytest.mark.parametrize(("units", "shape", "dims"), KINDS.values(), ids=KINDS)
def test_factors_are_spread_over_what_they_belong_to(units, shape, dims):
    tensors = [torch.randn(shape), torch.randn(shape)]
    found = Norms([Wanted((units, units))]).of_units(tensors)
    for index, factor in found.order.spread(1.0 / found.norms):
        after = units.norms(tensors[index] * factor)
        assert torch.allclose(after, torch.ones(units.count(shape)), rtol=1e-5)


def test_one_number_for_each_tensor_is_one_for_each_of_its_units():
    found = Norms([Wanted((ROWS, None, WHOLE))]).of_units([torch.randn(2, 3), torch.randn(2), torch.randn(4)])
    assert found.order.one_each(torch.tensor([0.5, 9.0, 0.25])).tolist() == [0.5, 0.5, 0.25]
    assert found.order.pick(["a", "b", "c"]) == ["a", None, "c"]


def test_pieces_make_up_the_norm():
    rows = torch.randn(2, 3_000_001)
    pieces = norms_of_pieces(rows, 2, None)
    assert pieces.shape[1] < 2**13
    assert torch.allclose(pieces.double().norm(dim=1), rows.double().norm(dim=1), rtol=1e-5)
