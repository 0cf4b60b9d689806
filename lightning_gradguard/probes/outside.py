"""Layers that no optimizer trains although they take part: forgotten ones, a frozen last part, frozen zeros, or weights
as torch draws them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import join, module_names

_LOOKED_AT = 4096  # elements of a frozen matrix by which one tells how it was drawn
_SMALL = 64  # elements below which one cannot tell
_EDGE = 12.0  # over the number of elements: how far below the bound the largest may lie, but once in 100,000
_FEW = 64  # elements of a frozen matrix that are looked at before all of it is


def unoptimized(module: nn.Module, layouts: Sequence[Layout]) -> tuple[str, ...]:
    """Layers of which a parameter gets a gradient and is in no optimizer.

    Args:
        module: the model.
        layouts: of all its optimizers.
    """
    known = {id(parameter) for layout in layouts for parameter in layout.params}
    return tuple(
        name or "the module itself"
        for part, name in module_names(module).items()
        if any(p.requires_grad and p.grad is not None and id(p) not in known for p in part.parameters(recurse=False))
    )


def frozen_last(
    module: nn.Module, layouts: Sequence[Layout], order: Mapping[str, int], flows: Mapping[str, bool]
) -> tuple[str, ...]:
    """Frozen layers with weights that ran after the last one that trains, and let gradients through.

    Args:
        module: the model.
        layouts: of all its optimizers: what another one holds is frozen for the moment only.
        order: place of each module in the forward pass.
        flows: whether the output of a module had a gradient to pass on.
    """
    parts = {name: part for part, name in module_names(module).items()}
    held = {id(p) for layout in layouts for p in layout.params} if len(layouts) > 1 else set()
    last: list[str] = []
    trains = False
    for name in sorted(order, key=lambda name: order[name]):
        part = parts.get(name)
        weights = [p for p in part.parameters(recurse=False) if p.dim() > 1] if part is not None else []
        if any(p.requires_grad or id(p) in held for p in weights):
            trains, last = True, []
        elif weights and trains and flows.get(name):
            last.append(name)
    return tuple(last)


@torch.no_grad()
def frozen_zeros(module: nn.Module, without: Sequence[str]) -> tuple[str, ...]:
    """Frozen matrices that are all zero, of the layers whose gradient is exactly zero and of those beside them.

    What is multiplied by such a matrix cannot train: one half of an adapter, where the other is frozen at zero.

    Args:
        module: the model.
        without: layers whose gradient is exactly zero; where there are none, nothing is looked at.
    """
    beside = tuple({f"{name.rsplit('.', 2)[0]}." for name in without})
    found = [
        join(name, key)
        for part, name in module_names(module).items()
        for key, parameter in part._parameters.items()
        if parameter is not None and join(name, key).startswith(beside) and _is_frozen_at_zero(parameter)
    ]
    return tuple(found)


def _is_frozen_at_zero(parameter: Tensor) -> bool:
    if parameter.requires_grad or parameter.dim() < 2 or type(parameter) is not nn.Parameter or parameter.is_meta:
        return False
    few = parameter.detach().flatten()[:_FEW] if parameter.is_contiguous() else parameter
    return not bool(few.any()) and not bool(parameter.any())  # host sync: where a gradient is exactly zero


@torch.no_grad()
def frozen_as_drawn(module: nn.Module, order: Mapping[str, int], flows: Mapping[str, bool]) -> tuple[str, ...]:
    """Frozen layers whose weights are as torch draws them: evenly, between bounds that the shape gives.

    Weights that were trained reach over the bound, or end below it. Left out are the layers of a net most of which have
    a twin that trains, as those of a target network have; and those that are less than half of what is frozen, as a
    last layer that is of no use behind a trained trunk. And those through which gradients flow: what is to be tuned by
    a prompt or an adapter before it is frozen on purpose.

    Args:
        module: the model.
        order: place of each module in the forward pass: those that have not run are not looked at.
        flows: whether the output of a module had a gradient to pass on.
    """
    parts = [(part, name) for part, name in module_names(module).items() if name in order]
    shapes = {(type(part), w.shape) for part, _ in parts if (w := _drawn_weight(part)) is not None and w.requires_grad}
    frozen = [(part, name, w) for part, name in parts if (w := _drawn_weight(part)) is not None and not w.requires_grad]
    found = [(part, name, w) for (part, name, w), drawn in zip(frozen, _are_drawn(frozen), strict=True) if drawn]
    found = [(part, name, w) for part, name, w in found if not flows.get(name)]
    twins = sum((type(part), w.shape) in shapes for part, _, w in found)
    others = sum(any(p.dim() > 1 and not p.requires_grad for p in part.parameters(recurse=False)) for part, _ in parts)
    few = 2 * len(found) < others  # of whatever kind they are
    return () if few or 2 * twins > len(found) else tuple(name for _, name, _ in found)


def _drawn_weight(part: nn.Module) -> Tensor | None:
    """The matrix of a layer of which it is known how torch draws it."""
    weight = part._parameters.get("in_proj_weight" if isinstance(part, nn.MultiheadAttention) else "weight")
    known = isinstance(part, nn.MultiheadAttention | nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if not known or type(weight) is not nn.Parameter or weight.is_meta or weight.numel() < _SMALL:
        return None
    return weight if weight.is_contiguous() and weight.is_floating_point() else None


def _are_drawn(frozen: Sequence[tuple[nn.Module, str, Tensor]]) -> list[bool]:
    """Of each whether its largest element is as near its bound, and its root mean square as chance allows."""
    if not frozen:
        return []
    few = [weight.detach().flatten()[:_LOOKED_AT].float() for _, _, weight in frozen]
    seen = [torch.stack([w.abs().amax(), w.square().mean()]).to(few[0].device) for w in few]
    drawn = []
    for (part, _, weight), elements, (largest, square) in zip(frozen, few, torch.stack(seen).tolist(), strict=True):
        number, fan_in = elements.numel(), weight[0].numel()  # host sync: an early step
        evenly = isinstance(part, nn.MultiheadAttention)
        bound = math.sqrt(6 / (len(weight) + fan_in)) if evenly else 1 / math.sqrt(fan_in)
        near = bound * (1 - _EDGE / number) <= largest <= bound * (1 + 1e-3)
        drawn.append(near and abs(3 * square / bound**2 - 1) < 4 * math.sqrt(0.8 / number))
    return drawn
