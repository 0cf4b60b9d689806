"""Layers that no optimizer trains although they take part: forgotten ones, a frozen last part, frozen zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import join, module_names

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
