"""Layers that no optimizer trains although they take part: forgotten ones, and a frozen last part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import module_names


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
