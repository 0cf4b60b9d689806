"""What one tensor is, as far as measuring goes: its numbers, in which precision they are summed, whether it is odd."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_values(tensor: Tensor) -> Tensor:
    """Returns the numbers of a tensor as a dense real or complex one."""
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the real dtype in which numbers of ``dtype`` are summed: at least float32.

    Example:
        >>> accumulator(torch.bfloat16), accumulator(torch.complex128)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def is_plain(tensor: Tensor | None) -> bool:
    """Tells whether a tensor is measured with others: there, dense, real and not empty."""
    return tensor is not None and tensor.layout == torch.strided and not tensor.is_complex() and bool(tensor.numel())
