"""How far a step really moved the weights, measured on sampled steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradguard.arguments import check_count
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import by_layer, whole_norms
from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.probes.sampled import is_sampled

# Of larger tensors a sixteenth of each row is compared: their whole copy costs several clippings of the model.
_WHOLE_NUMEL = 2**16
_SHARE = 16
_MIN_WIDTH = 8  # elements of a row: fewer say little where few rows move
# Smaller tensors of one shape are copied and subtracted together: dispatch costs more than the copy.
_STACK_NUMEL = 4096


class UpdateMeter:
    """Measures ||change of the weights|| / ||weights|| of each layer on sampled steps.

    The true figure, whatever the optimizer does with the gradient: ``lr * ||g||`` is wrong for Adam, momentum and
    weight decay. On a sampled step parameters are copied before ``optimizer.step()`` and compared after it; other
    steps cost one comparison.

    Tensors of up to 65,536 elements are compared whole, and so are slices of sharded ones, those with rows below 32
    elements, and those that are not contiguous. Of larger ones a fixed sixteenth is compared, one stretch of each
    row, at another place in the next row: neither a step that moves a few rows (an embedding, a wide classifier) nor
    one that moves a few columns (silent inputs) is overlooked. The figure is then within 3 % where all rows move, and
    within 25 % where 32 do. Memory is that of the copies, for the length of the step.

    Args:
        layout: the parameters of the optimizer.
        every_n_steps: interval between sampled steps, >= 1; the powers of two below it are sampled as well.

    Raises:
        TypeError, ValueError: if ``every_n_steps`` is no int of at least 1.

    Example:
        >>> import torch
        >>> from lightning_gradguard.measurement.layout import Layout
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> meter = UpdateMeter(Layout.from_optimizer(net, optimizer))
        >>> net.weight.data.fill_(1.0), net(torch.ones(1, 2)).sum().backward()
        (tensor([[1., 1.]]), None)
        >>> meter.before_step(0)
        >>> optimizer.step()
        >>> meter.after_step()
        >>> meter.take()
        (0.5,)
    """

    def __init__(self, layout: Layout, every_n_steps: int = 50) -> None:
        check_count(every_n_steps, "every_n_steps")
        self.layout = layout
        self.every_n_steps = every_n_steps
        self._before: _Copies | None = None
        self._scale: Tensor | None = None  # from the norms of what is compared to those of whole tensors
        self._norms = Norms()
        self._largest: Tensor | None = None

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Copies the parameters if the step is sampled; call it before ``optimizer.step()``."""
        if is_sampled(step, self.every_n_steps):
            self.copy()

    @torch.no_grad()
    def copy(self) -> None:
        """Copies the parameters, whatever the step is."""
        values = self._values()
        self._before, self._scale = _Copies(values), self._scale_of(values)

    @torch.no_grad()
    def after_step(self) -> None:
        """Compares; call it after ``optimizer.step()``, on every step."""
        if self._before is None:
            return
        before, self._before = self._before, None
        weights = self._by_layer(before)
        before.subtract_(self._values())
        ratios = self._by_layer(before) / weights  # 0 / 0 is NaN: nothing to speak of
        self._largest = ratios if self._largest is None else torch.fmax(self._largest, ratios)

    def take(self) -> tuple[float | None, ...] | None:
        """Largest ratio of each layer over the sampled steps since the last call; ``None`` without a new sample.

        ``None`` for a layer whose weights are all zero and stay so; infinity where they were zero and moved.
        """
        if self._largest is None:
            return None
        ratios, self._largest = self._largest.tolist(), None  # host sync: a sampled step
        return tuple(None if ratio != ratio else ratio for ratio in ratios)

    def state(self) -> Tensor | None:
        """What is not told yet."""
        return None if self._largest is None else self._largest.clone()

    def load_state(self, state: Tensor | None) -> None:
        """Goes on from :meth:`state`."""
        if state is None or len(state) == len(self.layout.layers):
            self._largest = state

    def _values(self) -> list[Tensor]:
        """Returns what is compared of each parameter, as views of it."""
        if not self.layout.sharding.whole:
            return list(self.layout.values())
        return [part_of(parameter) for parameter in self.layout.params]

    def _scale_of(self, values: Sequence[Tensor]) -> Tensor | None:
        if not self.layout.sharding.whole:
            return None
        pairs = enumerate(zip(self.layout.params, values, strict=True))
        parts = {i: math.sqrt(whole.numel() / part.numel()) for i, (whole, part) in pairs if part is not whole}
        if not parts:
            return None
        scales = [parts.get(i, 1.0) for i in range(len(values))]
        return torch.tensor(scales, device=values[0].device, dtype=torch.float32)  # a copy there: a sampled step

    def _by_layer(self, copies: _Copies) -> Tensor:
        norms = whole_norms(self.layout, copies.tensors, self._norms)
        return by_layer(self.layout, norms if self._scale is None else norms * self._scale)


def part_of(tensor: Tensor) -> Tensor:
    """Returns a fixed sixteenth of a large tensor, as a view ``[stretches, elements]``; any other tensor as it is.

    Stretches of a sixteenth of a row, and at least 8 elements, begin at distances of a little less than a row: so each
    row has one, and they wander through the columns.
    """
    if tensor.numel() <= _WHOLE_NUMEL or tensor.layout != torch.strided or not tensor.is_contiguous():
        return tensor
    row = tensor.numel() // tensor.shape[0]
    width = max(row // _SHARE, _MIN_WIDTH)
    if row < 4 * width:
        return tensor
    distance = row - width - 1
    return tensor.as_strided(((tensor.numel() - width) // distance + 1, width), (distance, 1), tensor.storage_offset())


@dataclass(frozen=True)
class _Stack:
    """Copies of small tensors of one shape, in one piece."""

    indices: tuple[int, ...]
    values: Tensor


class _Copies:
    """Copies of tensors.

    Attributes:
        tensors: the copies, in the order of the originals.
    """

    def __init__(self, originals: Sequence[Tensor]) -> None:
        alike: dict[tuple[torch.device, torch.dtype, torch.Size], list[int]] = defaultdict(list)
        self._others: list[int] = []
        for index, tensor in enumerate(originals):
            if tensor.layout == torch.strided and tensor.numel() <= _STACK_NUMEL:
                alike[tensor.device, tensor.dtype, tensor.shape].append(index)
            else:
                self._others.append(index)
        self._stacks = [_Stack(tuple(i), torch.stack([originals[j] for j in i])) for i in alike.values()]
        places = {index: originals[index].clone() for index in self._others}
        for stack in self._stacks:
            places.update(zip(stack.indices, stack.values.unbind(), strict=True))
        self.tensors = [places[index] for index in range(len(originals))]

    def subtract_(self, others: Sequence[Tensor]) -> None:
        """Subtracts one tensor from each, in place."""
        for stack in self._stacks:
            stack.values.sub_(torch.stack([others[index] for index in stack.indices]))
        if self._others:
            torch._foreach_sub_([self.tensors[i] for i in self._others], [others[i] for i in self._others])
