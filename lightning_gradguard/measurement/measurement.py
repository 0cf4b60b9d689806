"""The one pass over the gradients: norms of every parameter, layer and of the whole, on the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_gradguard.measurement.needs import NOTHING, Found, HasNeeds, Needs
from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.tensors import accumulator
from lightning_gradguard.measurement.tensors import dense_values as dense_values
from lightning_gradguard.measurement.unit_norms import UnitNorms

if TYPE_CHECKING:  # a layout makes measurements
    from lightning_gradguard.measurement.layout import Layout


@dataclass(eq=False)
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
        needs: of the policies that get this, beyond norms.
        found: the norms of units that were found in the same pass, of all who need some.
        scale: what the gradients are still to be multiplied by, ``[]`` or ``[num_params]``: all numbers are those
            after it; ``None`` for nothing.
    """

    layout: Layout
    grads: tuple[Tensor | None, ...]
    norms: Tensor
    total: Tensor
    needs: Needs = NOTHING
    found: Found = field(default_factory=dict)
    scale: Tensor | None = None

    def __repr__(self) -> str:
        return f"Measurement({self.layout!r}, total={self.total!r})"

    @functools.cached_property
    def present(self) -> tuple[bool, ...]:
        """For each parameter whether it has a gradient; known on the host.

        Under FSDP1 slices do not tell, so there every parameter that is trained counts as having one.
        """
        return self.layout.sharding.present(self.layout.params, self.grads)

    def with_present(self, present: tuple[bool, ...]) -> Measurement:
        """Returns itself, and knows from now on which gradients are there without a look at them."""
        self.__dict__["present"] = present
        return self

    def part(self, layout: Layout, indices: Sequence[int], needs: Needs = NOTHING) -> Measurement:
        """Returns what a part of the parameters measures, for a policy of its own.

        Args:
            layout: of the part.
            indices: its parameters, as indices in this layout.
            needs: of its policy, with these indices.
        """
        norms = self.norms[self.layout.index(indices, self.norms.device)]
        grads = tuple([self.grads[i] for i in indices])
        return Measurement(layout, grads, norms, torch.linalg.vector_norm(norms), needs, self.found)

    def by_unit(self, policy: HasNeeds) -> list[UnitNorms]:
        """Returns the norms of the units that a policy needs, of gradients and of weights.

        They were found in the pass that :func:`measure` made for these needs. Where it was not told of them, and for
        copies of gradients that a chain clipped, they are measured here, at the price of another read.

        Args:
            policy: which declares its units in :meth:`~lightning_gradguard.clip.base.ClipPolicy.needs`.
        """
        needs = self.needs.by_policy.get(id(policy))
        if needs is None:  # somebody else has handed on what it needs
            needs = self.needs.leaf_like(policy.needs(self.layout).within(self.needs.indices))
        units = self.layout.sharding.by_unit(needs, self.grads, self.layout.params, self.found)
        return units if self.scale is None else [each.scaled(self.scale) for each in units]

    @functools.cached_property
    def max_abs(self) -> Tensor:
        """Largest absolute element of each gradient, ``[num_params]``; a second read of the gradients, on demand."""
        own = self.layout.norms_of_gradients.largest(self.grads).to(self.norms)
        values = self.layout.sharding.largest(own)
        return values if self.scale is None else values * self.scale

    @functools.cached_property
    def weight_norms(self) -> Tensor:
        """l2 norm of each parameter, ``[num_params]``; reads the parameters, on demand."""
        with torch.no_grad():
            return whole_norms(self.layout, self.layout.values(), self.layout.norms_of_values)

    def without_gradients(self) -> Measurement:
        """Returns the same numbers, without the gradients, whose memory is let go."""
        return replace(self, grads=(None,) * len(self.grads), found={}).with_present(self.present)

    def scaled(self, coefficient: Tensor) -> Measurement:
        """Multiplies what was measured by ``coefficient`` (``[]`` or ``[num_params]``, >= 0), without a new pass."""
        norms = self.norms * coefficient
        total = self.total * coefficient if coefficient.dim() == 0 else torch.linalg.vector_norm(norms)
        scale = coefficient if self.scale is None else self.scale * coefficient
        after = replace(self, norms=norms, total=total, scale=scale)
        if "max_abs" in self.__dict__:
            after.__dict__["max_abs"] = self.max_abs * coefficient
        return after


@torch.no_grad()
def measure(layout: Layout, needs: Needs = NOTHING) -> Measurement:
    """Measures the gradients of a layout's parameters as they are now.

    One call of ``torch._foreach_norm`` for the ordinary ones; small same-shape ones are stacked, very large
    ones are measured in rows on CPU, sparse ones by their coalesced values, complex ones as pairs of reals.
    Nothing is written, and nothing crosses to the host.

    Args:
        layout: which parameters, see :class:`~lightning_gradguard.measurement.layout.Layout`.
        needs: what policies need besides, found in the same pass; it keeps the plan, so give the same at each step.

    Example:
        >>> import torch
        >>> from lightning_gradguard.measurement.layout import Layout
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> float(measure(Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))).total)
        5.0
    """
    return layout.measure(needs)


def whole_norms(layout: Layout, tensors: Sequence[Tensor | None], norms_of: Norms | None = None) -> Tensor:
    """l2 norm of each tensor, ``[num_params]``; under sharding of the whole ones, of which these are the pieces.

    Args:
        layout: the parameters that the tensors belong to, one each.
        tensors: gradients, values or copies of them; ``None`` counts as zero.
        norms_of: what measures such tensors again and again; ``None`` for a single time.
    """
    return layout.sharding.norms((norms_of or Norms())(tensors))


@torch.no_grad()
def measure_exactly(measurement: Measurement) -> Measurement:
    """Measures again, each gradient scaled by its largest element: right where float32 over- or underflows.

    The squares of elements near 1e30 overflow float32, and those of 1e-25 vanish, though every element is finite
    and not zero. Costs several passes, a scaled copy and one host read: for the rare step that needs it.
    """
    grads = {i: dense_values(grad) for i, grad in enumerate(measurement.grads) if grad is not None and grad.numel()}
    norms = torch.zeros(len(measurement.grads), dtype=torch.float64, device="cpu")  # not every device has float64
    if grads:
        largest = Norms().largest(list(grads.values())).tolist()  # host sync: off the quiet path
        units = [unit if 0.0 < unit < math.inf else 1.0 for unit in largest]
        scaled = measure_tensors(torch._foreach_div(list(grads.values()), units))
        norms[list(grads)] = scaled.cpu().double() * torch.tensor(units, dtype=torch.float64, device="cpu")
    device = measurement.norms.device
    norms = measurement.layout.sharding.norms(norms).cpu()
    unit = float(norms.max()) if norms.numel() else 0.0
    unit = unit if 0.0 < unit < math.inf else 1.0
    total = torch.linalg.vector_norm(norms / unit) * unit
    if device.type == "mps":  # what float32 cannot hold stays infinite there
        norms, total = norms.float(), total.float()
    return replace(measurement, norms=norms.to(device), total=total.to(device))


@torch.no_grad()
def p_norms(measurement: Measurement, p: float) -> Tensor:
    """Returns the lp norm of each gradient, ``[num_params]``, p > 0 or infinite; another pass, for logged steps."""
    if p == 2.0:
        return measurement.norms
    norms = torch.zeros_like(measurement.norms)
    for index, grad in enumerate(measurement.grads):
        if grad is not None and dense_values(grad).numel():
            norms[index] = torch.linalg.vector_norm(dense_values(grad).to(_at_least_float32(grad.dtype)), p)
    return measurement.layout.sharding.norms(norms, p)


def count_nonfinite(grad: Tensor) -> tuple[int, int]:
    """Tells how many elements are NaN and how many infinite: one exact pass and two host reads, for a bad step only."""
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
