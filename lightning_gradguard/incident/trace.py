"""What a watched step showed: values, operator calls, and where a non-finite value came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# What is said of infinities among the inputs of an operator that made the first NaN.
BY_A_MASK = ", put there by a mask"

Phase = Literal["forward", "backward"]


@dataclass(frozen=True)
class TensorRange:
    """What a tensor held: shape, dtype, smallest and largest finite value, and how many were not finite."""

    shape: tuple[int | str, ...]
    dtype: str
    low: float
    high: float
    nan: int
    inf: int

    @classmethod
    def of(cls, tensor: Tensor) -> TensorRange:
        """Reads a tensor; several passes and host reads."""
        values = reals(tensor)
        finite = values[values.isfinite()]
        low, high = (float(v) for v in finite.aminmax()) if finite.numel() else (float("nan"), float("nan"))
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(shape_of(tensor), dtype, low, high, int(values.isnan().sum()), int(values.isinf().sum()))

    def __str__(self) -> str:
        return self.describe()

    def describe(self, *, masked: bool = False) -> str:
        """In words; ``masked`` says of infinities that they were meant."""
        bad = ", ".join(f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n)
        bad += BY_A_MASK if masked and self.inf else ""
        span = "no finite value" if self.low != self.low else f"{self.low:.3g} … {self.high:.3g}"
        shape = ", ".join(map(str, self.shape))
        return f"{self.dtype}[{shape}]: {span}{f' ({bad})' if bad else ''}"


@dataclass(frozen=True)
class OperatorCall:
    """One call of one operator.

    Attributes:
        index: position among all calls of the step.
        phase: ``"forward"`` or ``"backward"``.
        module: name of the innermost module it ran in (backward: of the forward operator it belongs to); ``""`` for
            the training step itself.
        operator: e.g. ``"aten.log.default"``.
        node: the autograd node, in the backward pass.
        source: file, line and function of the user's code that called it.
        inputs: what its tensor arguments held.
        output: what its first non-finite result held.
    """

    index: int
    phase: Phase
    module: str
    operator: str
    node: str | None
    source: str | None
    inputs: tuple[TensorRange, ...]
    output: TensorRange


@dataclass(frozen=True)
class Extreme:
    """Largest finite magnitude an operator put out, and how near that is to the end of its dtype."""

    index: int
    phase: Phase
    module: str
    operator: str
    dtype: str
    largest: float
    fraction: float

    def describe(self) -> str:
        """Where, and how large."""
        place = f"module {self.module!r}" if self.module else "the training step itself"
        what = f"{self.operator} in the {self.phase} pass of {place}" if "aten" in self.operator else self.operator
        return f"{what}: {self.largest:.3g} ({self.dtype})"


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a non-finite value came from: an operator that made it of finite ones, or a tensor that held it before.

    Attributes:
        place: ``"operator"``, ``"parameter"``, ``"buffer"``, ``"batch"``, ``"tensor"`` (one made before the step) or
            ``"loss scale"`` (finite gradients become non-finite when it is divided out).
        name: of the parameter, buffer or batch entry.
        call: the operator that made it, or the first that used it.
        held: for what was there before the step: what it held.
        meant: an infinity written by a pure filling operator, or -Inf in a buffer: a mask, unless it becomes a NaN.
        trail: the last results before it, oldest first.
    """

    place: Literal["operator", "parameter", "buffer", "batch", "tensor", "loss scale"]
    name: str
    call: OperatorCall | None
    held: TensorRange | None
    meant: bool
    trail: tuple[Extreme, ...] = ()


def is_near_limit(largest: float, dtype: torch.dtype) -> bool:
    """Tells whether a magnitude is near the end of its dtype: its square overflows, or in float16 three doublings do.

    Exactly the largest number is a mask, and not near it.
    """
    end = torch.finfo(dtype).max
    return (end / 8 if dtype == torch.float16 else end**0.5) <= largest < end


def shape_of(tensor: Tensor) -> tuple[int | str, ...]:
    """Returns the shape, with ``"*"`` for the dimensions in which the parts of a nested tensor differ."""
    if tensor.is_nested and tensor.layout == torch.strided:
        return (tensor.size(0), *["*"] * (tensor.dim() - 1))
    return tuple(size if type(size) is int else "*" for size in tensor.shape)


def pieces(tensor: Any) -> list[Tensor]:
    """The dense tensors that hold the numbers of a tensor: itself, the values of a sparse or nested one, its shard."""
    if hasattr(tensor, "_local_tensor"):
        return pieces(tensor._local_tensor)
    if tensor.layout == torch.jagged:
        return [tensor._values]
    if tensor.is_nested:
        return [tensor.values()]
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return [tensor.values()]
    return [tensor.to_dense()] if tensor.layout == torch._mkldnn else []  # type: ignore[attr-defined]


def reals(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a dense real tensor that every operator knows; without any where it has none."""
    dense = pieces(tensor.detach())
    if not dense or dense[0].is_quantized or dense[0].device.type == "meta" or _is_hollow(dense[0]):
        return torch.empty(0, device="cpu")
    values = dense[0]
    if values.is_complex():
        return torch.view_as_real(values.resolve_conj())
    return values.float() if values.dtype.itemsize == 1 and values.is_floating_point() else values  # float8


def is_finite(tensor: Tensor) -> bool:
    """Tells whether every number of a tensor, of whatever layout, is finite; a host sync."""
    return bool(reals(tensor).isfinite().all())


def largest_magnitude(tensor: Tensor) -> float | None:
    """Largest magnitude on the host, NaN or infinite if one is; ``None`` for what cannot be non-finite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    values = reals(tensor)
    if not values.numel():
        return None
    low, high = values.aminmax()
    return abs(float(torch.maximum(-low, high)))


def _is_hollow(tensor: Tensor) -> bool:
    """Tells whether it has a shape and no memory, as the tensors that stand for others do."""
    return tensor.numel() > 0 and type(tensor) is not Tensor and hasattr(tensor, "__tensor_flatten__")
