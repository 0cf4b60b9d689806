"""Brings groups of named numbers to the host, all of them in a single copy."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

# A tensor of shape [] on the device, a float once it is on the host; None where it does not apply.
Number: TypeAlias = Any
# A tensor of shape [n] on the device, a list of floats once it is on the host; None where it does not apply.
Vector: TypeAlias = Any

Group = TypeVar("Group")


def on_host(*groups: Any) -> tuple[Any, ...]:
    """Returns the groups with a float or a list of floats in place of each tensor: one copy from the device for all.

    Args:
        groups: frozen dataclasses whose fields are tensors of shape ``[]`` or ``[n]``, or anything else, which passes
            through. At least one field is a tensor.

    Example:
        >>> from lightning_gradguard.recording.build import Totals
        >>> (totals,) = on_host(Totals(total_norm=torch.tensor(5.0), threshold=torch.tensor(1.0)))
        >>> totals.total_norm, totals.threshold, totals.cosine
        (5.0, 1.0, None)
    """
    assert all(is_dataclass(group) for group in groups)
    tensors = [(group, f.name, getattr(group, f.name)) for group in groups for f in fields(group)]
    tensors = [entry for entry in tensors if isinstance(entry[2], Tensor)]
    device = tensors[0][2].device
    # Put together they get the widest of their dtypes, and no number changes.
    flat = torch.cat([value.reshape(-1).to(device) for _, _, value in tensors])
    numbers = flat.tolist()  # host sync: a logged step

    found: dict[int, dict[str, Any]] = {id(group): {} for group in groups}
    start = 0
    for group, name, value in tensors:
        end = start + value.numel()
        found[id(group)][name] = numbers[start:end] if value.dim() else numbers[start]
        start = end
    return tuple(replace(group, **found[id(group)]) for group in groups)
