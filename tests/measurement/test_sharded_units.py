"""Which unit the elements of a piece belong to: the pieces of a tensor together make up the units of the whole."""

import pytest
import torch

from lightning_gradguard.measurement.pieces import Piece
from lightning_gradguard.measurement.sharded_units import unit_of_elements
from lightning_gradguard.measurement.units import WHOLE, Units

# units, and the shape of the whole
KINDS = {
    "rows": (Units((1,)), (6, 5)),
    "columns": (Units((0,)), (6, 5)),
    "rows of a convolution": (Units((1, 2)), (6, 5, 3)),
    "groups": (Units((1, 3), view=(2, 3, 5, 3)), (6, 5, 3)),
    "whole": (WHOLE, (6, 5)),
}


def slices(whole):
    """Uneven pieces of the flattened whole, as FSDP1 cuts it; one is empty."""
    flat = whole.flatten()
    for begin, end in ((0, 7), (7, 7), (7, 20), (20, flat.numel())):
        yield Piece(tuple(whole.shape), 1, whole.device, whole.dtype, elements=(begin, end)), flat[begin:end]


def shards(dim):
    """Pieces along one dimension, as FSDP2 and tensor parallelism cut it."""

    def cut(whole):
        start = 0
        for local in whole.split((2, whole.shape[dim] - 2), dim):
            offset = tuple(start if other == dim else 0 for other in range(whole.dim()))
            yield Piece(tuple(whole.shape), 1, whole.device, whole.dtype, offset=offset), local
            start += local.shape[dim]

    return cut


@pytest.mark.parametrize("cut", [slices, shards(0), shards(1)], ids=["slices", "rows", "columns"])
@pytest.mark.parametrize(("units", "shape"), KINDS.values(), ids=KINDS)
def test_the_pieces_make_up_the_units_of_the_whole(units, shape, cut):
    whole = torch.randn(shape, dtype=torch.float64)
    squares = torch.zeros(units.count(shape), dtype=torch.float64)
    for piece, local in cut(whole):
        place = unit_of_elements(piece, units, local)
        assert place.num_units == units.count(shape)
        squares.index_add_(0, place.unit_of.expand(local.shape).flatten(), local.flatten().square())
    assert torch.allclose(squares.sqrt(), units.norms(whole))
