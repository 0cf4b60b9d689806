"""The one pass over the gradients: norms of every parameter, layer and of the whole, on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.norms import Norms, accumulator, is_plain
from lightning_gradguard.measurement.norms import dense_values as dense_values
from lightning_gradguard.measurement.units import UnitNorms, UnitPart


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is known of the gradients of one optimizer step, as device tensors.

    Attributes:
        layout: the parameters this is about.
        grads: the gradients, in the layout's order; ``None`` is *no gradient*, not zero. Under sharding, the pieces
            that this process holds; all numbers are those of whole tensors.
        norms: l2 norm of each gradient, shape ``[num_params]``, in real units; 0 where there is no gradient.
            float32, or float64 if one of the gradients is. Accumulated in at least float32 whatever the
            gradient's dtype. A NaN or infinite element shows as NaN or infinity here.
        total: l2 norm over all of them, shape ``[]``.
        units: norms of units that were measured along with the rest, of the layout in ``origin``.
        origin: where this is a part, what layout was measured and which of its parameters these are.
        scale: what the gradients are still to be multiplied by, ``[]`` or ``[num_params]``: all numbers are those
            after it; ``None`` for nothing.
    """

    layout: Layout
    grads: tuple[Tensor | None, ...]
    norms: Tensor
    total: Tensor
    units: UnitNorms | None = None
    origin: tuple[Layout, tuple[int, ...]] | None = None
    scale: Tensor | None = None

    @functools.cached_property
    def present(self) -> tuple[bool, ...]:
        """For each parameter whether it has a gradient; known on the host.

        Under FSDP1 slices do not tell, so there every parameter that is trained counts as having one.
        """
        if self.layout.sharding and self.layout.sharding.flat:
            return tuple([parameter.requires_grad for parameter in self.layout.params])
        return tuple([grad is not None for grad in self.grads])

    def part(self, layout: Layout, indices: Sequence[int]) -> Measurement:
        """What a part of the parameters measures, given its layout and its indices in this one."""
        norms = self.norms[layout.index(indices, self.norms.device)]
        grads = tuple(self.grads[i] for i in indices)
        origin = self.layout, tuple(indices)
        return Measurement(layout, grads, norms, torch.linalg.vector_norm(norms), self.units, origin)

    def by_unit(self, norms: Norms) -> UnitNorms:
        """l2 norm of each unit of the gradients that are dense, real and not empty.

        The first time this is a second read of the gradients. It asks that :func:`measure` finds them in its one
        pass from the next step on.

        Args:
            norms: with the units of each parameter, ``None`` for those that are not asked about; the same object at
                each step.
        """
        assert norms.units is not None
        layout, indices = self.origin or (self.layout, None)
        part = self._unit_part(norms, indices)
        if self.units is None or part is None:
            kinds = {i if indices is None else indices[i]: kind for i, kind in enumerate(norms.units) if kind}
            layout.norms_of_gradients.also(kinds, len(layout.params))
            found = norms.of_units(self.grads)
        else:
            order, places = part
            found = UnitNorms(self.units.norms if places is None else self.units.norms[places], order)
        return found if self.scale is None else found.scaled(self.scale)

    def _unit_part(self, norms: Norms, indices: Sequence[int] | None) -> UnitPart | None:
        """Where the units that somebody asks about are among those that were measured, found once for each order."""
        if self.units is None or norms.units is None:
            return None
        parts = self.units.order.parts
        if norms not in parts:
            wanted = [i for i, kind in enumerate(norms.units) if kind is not None and is_plain(self.grads[i])]
            parts[norms] = self.units.order.part(wanted, indices, self.units.norms.device)
        return parts[norms]

    @functools.cached_property
    def max_abs(self) -> Tensor:
        """Largest absolute element of each gradient, ``[num_params]``; a second read of the gradients, on demand."""
        values = self.layout.norms_of_gradients.largest(self.grads).to(self.norms)
        values = self.layout.sharding.largest(values) if self.layout.sharding else values
        return values if self.scale is None else values * self.scale

    @functools.cached_property
    def weight_norms(self) -> Tensor:
        """l2 norm of each parameter, ``[num_params]``; reads the parameters, on demand."""
        values = self.layout.params if self.layout.sharding is None else self.layout.values()
        with torch.no_grad():  # detaching each parameter would cost more than the norms
            return whole_norms(self.layout, values, self.layout.norms_of_values)

    def without_gradients(self) -> Measurement:
        """The same numbers, without the gradients, whose memory is let go."""
        kept = replace(self, grads=(None,) * len(self.grads))
        kept.__dict__["present"] = self.present
        return kept

    def scaled(self, coefficient: Tensor) -> Measurement:
        """The measurement after multiplying by ``coefficient`` (``[]`` or ``[num_params]``, >= 0); no new pass."""
        norms = self.norms * coefficient
        total = self.total * coefficient if coefficient.dim() == 0 else torch.linalg.vector_norm(norms)
        scale = coefficient if self.scale is None else self.scale * coefficient
        after = replace(self, norms=norms, total=total, scale=scale)
        if "max_abs" in self.__dict__:
            after.__dict__["max_abs"] = self.max_abs * coefficient
        return after


@torch.no_grad()
def measure(layout: Layout) -> Measurement:
    """Measures the gradients of a layout's parameters as they are now.

    One call of ``torch._foreach_norm`` for the ordinary ones; small same-shape ones are stacked, very large
    ones are measured in rows on CPU, sparse ones by their coalesced values, complex ones as pairs of reals.
    Nothing is written, and nothing crosses to the host.

    Args:
        layout: which parameters, see :class:`~lightning_gradguard.measurement.layout.Layout`.

    Example:
        >>> import torch
        >>> from lightning_gradguard.measurement.layout import Layout
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> float(measure(Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))).total)
        5.0
    """
    grads = tuple(layout.gradients())
    if layout.sharding is None:
        norms, units = layout.norms_of_gradients.with_units(grads)
    else:
        norms, units = whole_norms(layout, grads, layout.norms_of_gradients), None
    return Measurement(layout, grads, norms, torch.linalg.vector_norm(norms), units)


def whole_norms(layout: Layout, tensors: Sequence[Tensor | None], norms_of: Norms | None = None) -> Tensor:
    """l2 norm of each tensor, ``[num_params]``; under sharding of the whole ones, of which these are the pieces.

    Args:
        layout: the parameters that the tensors belong to, one each.
        tensors: gradients, values or copies of them; ``None`` counts as zero.
        norms_of: what measures such tensors again and again; ``None`` for a single time.
    """
    norms = (norms_of or Norms())(tensors)
    if layout.sharding is None:
        return norms
    # A process without pieces would know neither device nor dtype.
    wide = torch.float64 in [parameter.dtype for parameter in layout.params]
    return layout.sharding.norms(norms.to(layout.params[0].device, torch.float64 if wide else torch.float32))


@torch.no_grad()
def measure_exactly(measurement: Measurement) -> Measurement:
    """A second look with each gradient scaled by its own largest element: right where float32 over- or underflows.

    The squares of elements near 1e30 overflow float32, and those of 1e-25 vanish, though every element is finite
    and not zero. Costs several passes, a scaled copy and one host read: for the rare step that needs it.
    """
    grads = {i: dense_values(grad) for i, grad in enumerate(measurement.grads) if grad is not None and grad.numel()}
    norms = torch.zeros(len(measurement.grads), dtype=torch.float64)  # on the host: not every device has float64
    if grads:
        largest = Norms().largest(list(grads.values())).tolist()  # host sync: off the quiet path
        units = [unit if 0.0 < unit < math.inf else 1.0 for unit in largest]
        scaled = measure_tensors(torch._foreach_div(list(grads.values()), units))
        norms[list(grads)] = scaled.cpu().double() * torch.tensor(units, dtype=torch.float64)
    device = measurement.norms.device
    if measurement.layout.sharding:
        norms = measurement.layout.sharding.norms(norms.to(device)).cpu()
    total = torch.linalg.vector_norm(norms)
    if device.type == "mps":  # what float32 cannot hold stays infinite there
        norms, total = norms.float(), total.float()
    return replace(measurement, norms=norms.to(device), total=total.to(device))


@torch.no_grad()
def p_norms(measurement: Measurement, p: float) -> Tensor:
    """The lp norm of each gradient, ``[num_params]``, p > 0 or infinite; another pass, for logged steps."""
    if p == 2.0:
        return measurement.norms
    norms = torch.zeros_like(measurement.norms)
    for index, grad in enumerate(measurement.grads):
        if grad is not None and dense_values(grad).numel():
            norms[index] = torch.linalg.vector_norm(dense_values(grad).to(_at_least_float32(grad.dtype)), p)
    sharding = measurement.layout.sharding
    return sharding.norms(norms, p) if sharding else norms


def count_nonfinite(grad: Tensor) -> tuple[int, int]:
    """How many elements are NaN and how many infinite: one exact pass and two host reads, for a bad step only."""
    values = dense_values(grad)
    return int(values.isnan().sum()), int(values.isinf().sum())  # host syncs: a bad step is no quiet step


def measure_tensors(tensors: Sequence[Tensor | None]) -> Tensor:
    """l2 norm of each tensor, shape ``[len(tensors)]``, on the first tensor's device; 0 for ``None``."""
    return Norms()(tensors)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_complex else accumulator(dtype)


def by_layer(layout: Layout, norms: Tensor) -> Tensor:
    """l2 norm of each layer from those of its parameters, ``[..., num_params]`` to ``[..., num_layers]``.

    In float64 where the device has it, since the squares of tiny norms vanish in float32.
    """
    wide = norms.float() if norms.device.type == "mps" else norms.double()
    if len(layout.layers) == len(layout.params):
        return wide
    squares = wide.new_zeros(*wide.shape[:-1], len(layout.layers))
    return squares.index_add_(-1, layout.layer_index(norms.device), wide.square()).sqrt()
