"""Which tensors a probe can look at."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.sharding import is_distributed


def plain_values(value: Any) -> Tensor | None:
    """The elements behind a value as an ordinary tensor of this process; ``None`` where there are none to look at.

    Left out are what is no tensor of real floating-point numbers, or has no elements; sparse, nested and MKL-DNN
    layouts, whose elements have no place; tensors without memory (on the device ``meta``); and tensors that stand for
    something else: under ``torch.func`` transforms, or by a wrapper class. Of a distributed tensor it is the shard of
    this process.

    Example:
        >>> plain_values(torch.ones(2)), plain_values(torch.ones(2).to_sparse()), plain_values([1.0])
        (tensor([1., 1.]), None, None)
    """
    if not isinstance(value, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return None
    if is_distributed(value):
        value = cast(Any, value).to_local()
    if hasattr(value, "trigger_wait"):  # what a collective is still to bring
        value = cast(Any, value).trigger_wait()
    stands_for_another = type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if stands_for_another or value.is_nested or value.layout != torch.strided or value.is_meta:
        return None
    if not value.is_floating_point() or value.numel() == 0:
        return None
    ordinary = type(value) in (Tensor, nn.Parameter)
    return value if ordinary else value.as_subclass(Tensor)
