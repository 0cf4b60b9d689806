"""What one unit of a parameter is: the weights that feed one output, by the type of the module that owns them."""

from __future__ import annotations

from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.units import WHOLE, Units

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def units_of(layout: Layout) -> list[Units]:
    """Returns the units of each parameter of a layout.

    A row for every parameter of two or more dimensions (linear, convolution, embedding, attention, recurrent weights:
    the first dimension counts outputs, or entries of the table); the second dimension of transposed convolutions,
    within each group, and of the ``Conv1D`` of Hugging Face's GPT-2; a whole for biases, gains and scalars.
    """
    return [_units(shape, owner) for shape, owner in zip(layout.shapes, layout.owners, strict=True)]


def _units(shape: tuple[int, ...], owner: nn.Module | None) -> Units:
    dim = len(shape)
    if dim < 2 or isinstance(owner, _NORMS):
        return WHOLE
    if isinstance(owner, _TRANSPOSED) and dim == len(owner.kernel_size) + 2:
        if owner.groups == 1:
            return Units((0, *range(2, dim)))
        view = (owner.groups, shape[0] // owner.groups, *shape[1:])
        return Units((1, *range(3, dim + 1)), view)
    if type(owner).__name__ == "Conv1D" and dim == 2:  # transformers' own: a Linear with its weight transposed
        return Units((0,))
    return Units(tuple(range(1, dim))) if shape[0] > 1 else WHOLE
