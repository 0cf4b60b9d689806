"""What one unit of a parameter is: the weights that feed one output, by the type of the module that owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gradguard.layout import Layout

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Units:
    """How the elements of a parameter fall into units.

    Attributes:
        dims: dimensions inside a unit, over which its norm is taken; none where the parameter is one unit.
        view: the shape to see the parameter in before, where its own will not do (grouped transposed convolutions).
    """

    dims: tuple[int, ...]
    view: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether the parameter is a single unit."""
        return not self.dims

    def norms(self, tensor: Tensor, *, stacked: bool = False) -> Tensor:
        """l2 norm of each unit of such a parameter, or of a stack of them, as one vector."""
        dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
        first = int(stacked)
        if self.whole:
            inside = list(range(first, tensor.dim()))
            return (
                torch.linalg.vector_norm(tensor, dim=inside, dtype=dtype).flatten()
                if inside
                else tensor.abs().flatten()
            )
        seen = tensor if self.view is None else tensor.view(*tensor.shape[:first], *self.view)
        return torch.linalg.vector_norm(seen, dim=[dim + first for dim in self.dims], dtype=dtype).flatten()

    def spread(self, factors: Tensor, shape: torch.Size, num: int) -> Sequence[Tensor]:
        """One factor for each unit of ``num`` parameters of this shape, in vectors that broadcast over each of them."""
        if self.whole:
            return factors.unbind()
        outer = [1 if dim in self.dims else size for dim, size in enumerate(self.view or shape)]
        each = factors.view(num, *outer)
        if self.view is not None:
            each = each.expand(-1, -1, self.view[1], *[-1] * (each.dim() - 3)).flatten(1, 2)
        return each.unbind()


WHOLE = Units(())


def units_of(layout: Layout) -> list[Units]:
    """For each parameter of a layout its units.

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
