"""What the optimizer is set to: learning rate and weight decay of each layer, momentum."""

from __future__ import annotations

from typing import Any

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.optimizers import Optimizers


def optimizer_facts(layout: Layout, optimizers: Optimizers) -> dict[str, Any]:
    """The fields of a record that the optimizer's parameter groups tell.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> adam = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
        >>> facts = optimizer_facts(Layout.from_optimizer(net, adam), Optimizers(adam))
        >>> facts["weight_decays"], facts["momentum"]
        ((0.1, 0.1), 0.9)
    """
    rates = [_number(group.get("lr")) for group in optimizers.groups]
    decays = [_number(group.get("weight_decay")) for group in optimizers.groups]
    return {
        "learning_rates": _by_layer(layout, rates),
        "weight_decays": _by_layer(layout, decays),
        "momentum": max(filter(None, map(_momentum, optimizers.groups)), default=None),
        "optimizer_kind": type(optimizers.plain[0]).__name__,
        "maximizes": any(bool(group.get("maximize")) for group in optimizers.groups),
    }


def _momentum(group: dict[str, Any]) -> float | None:
    """Of SGD and its kin, or the first beta of Adam and its kin."""
    betas = group.get("betas")
    return _number(betas[0]) if isinstance(betas, list | tuple) and betas else _number(group.get("momentum"))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # host sync: a tensor as learning rate, on a logged step


def _by_layer(layout: Layout, of_groups: list[float | None]) -> tuple[float, ...] | None:
    """The largest of each layer's parameters; ``None`` if a group has no such setting."""
    known = [value for value in of_groups if value is not None]
    if len(known) < len(of_groups):
        return None
    values = [0.0] * len(layout.layers)
    for layer, group in zip(layout.layer_of, layout.group_of, strict=True):
        values[layer] = max(values[layer], known[group])
    return tuple(values)
