"""What a watched step showed: values, operator calls, and where a non-finite value came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Phase = Literal["forward", "backward"]


@dataclass(frozen=True)
class TensorRange:
    """What a tensor held: shape, dtype, smallest and largest finite value, and how many were not finite."""

    shape: tuple[int, ...]
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
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        return cls(shape, dtype, low, high, int(values.isnan().sum()), int(values.isinf().sum()))

    def __str__(self) -> str:
        bad = ", ".join(f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n)
        span = "no finite value" if self.low != self.low else f"{self.low:.3g} … {self.high:.3g}"
        return f"{self.dtype}{list(self.shape)}: {span}{f' ({bad})' if bad else ''}"


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
        place: ``"operator"``, ``"parameter"``, ``"buffer"``, ``"batch"`` or ``"tensor"`` (one made before the step).
        name: of the parameter, buffer or batch entry.
        call: the operator that made it, or the first that used it.
        held: for what was there before the step: what it held.
        meant: an infinity written by a pure filling operator, or -Inf in a buffer: a mask, unless it becomes a NaN.
        trail: the last results before it, oldest first.
    """

    place: Literal["operator", "parameter", "buffer", "batch", "tensor"]
    name: str
    call: OperatorCall | None
    held: TensorRange | None
    meant: bool
    trail: tuple[Extreme, ...] = ()


def is_near_limit(largest: float, dtype: torch.dtype) -> bool:
    """Whether a magnitude is near the end of its dtype: its square overflows, or in float16 three doublings do.

    Exactly the largest number is a mask, and not near it.
    """
    end = torch.finfo(dtype).max
    return (end / 8 if dtype == torch.float16 else end**0.5) <= largest < end


def named_tensors(batch: object, path: str = "batch", depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a batch of lists, tuples, mappings and objects, with the expression that reaches it.

    Goes ``depth`` levels down: deep enough for batches, and an end for objects that refer to each other.

    Example:
        >>> [name for name, _ in named_tensors({"x": torch.zeros(1), "y": [torch.zeros(2)]})]
        ["batch['x']", "batch['y'][0]"]
    """
    if isinstance(batch, Tensor):
        yield path, batch
    elif depth == 0:
        return
    elif isinstance(batch, dict) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        for key in batch.keys():  # noqa: SIM118 - some mappings iterate over something else
            yield from named_tensors(batch[key], f"{path}[{key!r}]", depth - 1)
    elif isinstance(batch, list | tuple):
        for index, item in enumerate(batch):
            yield from named_tensors(item, f"{path}[{index}]", depth - 1)
    elif hasattr(batch, "__dict__") and not isinstance(batch, type | nn.Module):
        for key, item in vars(batch).items():
            yield from named_tensors(item, f"{path}.{key}", depth - 1)


def reals(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a dense real tensor that every operator knows."""
    values = tensor.detach()
    values = values.coalesce().values() if values.layout == torch.sparse_coo else values
    if values.is_complex():
        return torch.view_as_real(values.resolve_conj())
    return values.float() if values.dtype.itemsize == 1 else values  # hardly any operator knows float8


def largest_magnitude(tensor: Tensor) -> float | None:
    """Largest magnitude on the host, NaN or infinite if one is; ``None`` for what cannot be non-finite."""
    if tensor.layout not in (torch.strided, torch.sparse_coo) or not tensor.numel() or tensor.device.type == "meta":
        return None
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    values = reals(tensor)
    if not values.numel():
        return None
    low, high = values.aminmax()
    return abs(float(torch.maximum(-low, high)))
