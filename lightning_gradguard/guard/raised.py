"""What is not finite where a step has raised an exception: looked at then, and only then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.guard.guard import NonFiniteGradientError
from lightning_gradguard.incident.batch import is_array, named_tensors
from lightning_gradguard.incident.trace import reals
from lightning_gradguard.measurement.sharding import local

# No NaN makes these: a name that does not exist, an argument too many, a memory that is full.
_NEVER_A_NAN = (
    NonFiniteGradientError, AttributeError, ImportError, MemoryError, NameError, NotImplementedError, StopIteration,
    TypeError, torch.OutOfMemoryError,
)  # fmt: skip
# Where the tensor itself is gone by the time the exception is here, but torch's own words tell of it.
_TORCH_SAYS_SO = {
    "returned nan values": "a gradient in the backward pass",  # autograd's anomaly mode
    "input matrix contained non-finite values": "the matrix that torch.linalg was given",  # svd and its kin
    "input tensor should not contain infs or NaNs": "the matrix that torch.linalg was given",  # eig
}
# Their variables hold the Trainer's parts, and with them what earlier steps have left there.
_NOT_THE_STEP = ("lightning", "pytorch_lightning", "lightning_fabric", "lightning_gradguard")
_MAX_FINDINGS = 5
_MAX_TENSORS = 1000  # in variables: a loop may have gathered many


def may_be_a_nan(error: BaseException) -> bool:
    """Whether an exception is of a kind that a NaN can make."""
    return isinstance(error, Exception) and not isinstance(error, _NEVER_A_NAN)


@torch.no_grad()
def find_nonfinite(error: BaseException, batch: Any, state: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Returns what was not finite when a step raised, in words: ``"batch['x'] holds 1 NaN at [20, 0]"``.

    Looks at the batch, at the state it is given, and at the tensors in the variables of the functions that were
    running: activations and losses. An infinity of minus sign counts in the state alone, since masks are made of it.

    Args:
        error: the exception.
        batch: of the step.
        state: weights, buffers, gradients and losses by name.
    """
    found = []
    for name, tensor, may_mask in _all_of(error, batch, state):
        if (words := describe(name, tensor, may_mask=may_mask)) is not None:
            found.append(words)
        if len(found) == _MAX_FINDINGS:
            break
    if not found:
        found += [place for said, place in _TORCH_SAYS_SO.items() if said in str(error)]
    return tuple(found)


def describe(name: str, tensor: Tensor, *, may_mask: bool = True) -> str | None:
    """How many elements are not finite and where the first is; ``None`` for a tensor that is fine.

    Args:
        name: what it is called.
        tensor: to look at.
        may_mask: whether an infinity of minus sign is left out, which masks are made of and no weight is.

    Example:
        >>> describe("x", torch.tensor([0.0, float("nan")]))
        'x holds 1 NaN at [1]'
    """
    readable = tensor.layout in (torch.strided, torch.sparse_coo) and not tensor.is_meta and tensor.numel()
    if not readable or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    values = reals(local(tensor))
    bad = values.isnan()
    if not bool(bad.any()):  # host sync: the step has failed
        bad = values == torch.inf if may_mask else values.isinf()
    if not bool(bad.any()):
        return None
    kind = "NaN" if bool(values[bad].isnan().any()) else "Inf"
    index = bad.nonzero()[0].tolist()[: tensor.dim()]
    return f"{name} holds {int(bad.sum())} {kind}" + (f" at {index}" if index else "")


def _all_of(
    error: BaseException, batch: Any, state: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor, bool]]:
    yield from ((name, tensor, True) for name, tensor in named_tensors(batch))
    yield from ((name, tensor, False) for name, tensor in state)
    yield from ((name, tensor, True) for name, tensor in islice(_variables(error), _MAX_TENSORS))


def _variables(error: BaseException) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the variables of the functions that were running, but for the Trainer's; innermost last."""
    seen: set[int] = set()
    for trace in _frames(error):
        code = trace.tb_frame.f_code
        where = f"{code.co_name} ({Path(code.co_filename).name}:{trace.tb_lineno})"
        for name, value in list(trace.tb_frame.f_locals.items()):
            for path, tensor in _tensors_of(value, name):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path} in {where}", tensor


def _frames(error: BaseException) -> Iterator[TracebackType]:
    """What was running when an exception was raised, or one that it came of, or one of its group."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        one = chain.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        trace = one.__traceback__
        while trace is not None:
            if not _is_the_trainers(trace.tb_frame.f_globals.get("__name__")):
                yield trace
            trace = trace.tb_next
        chain += [*getattr(one, "exceptions", ()), one.__cause__, None if one.__suppress_context__ else one.__context__]


def _tensors_of(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors and arrays of a variable, or of the attributes of an object that is no module: a distribution's."""
    if isinstance(value, Tensor | list | tuple | dict) or is_array(value):
        yield from named_tensors(value, name)
    elif not isinstance(value, nn.Module) and not _is_the_trainers(type(value).__module__):
        for attribute, part in list(getattr(value, "__dict__", {}).items()):
            if isinstance(part, Tensor) or is_array(part):
                yield from named_tensors(part, f"{name}.{attribute}")


def _is_the_trainers(module_name: object) -> bool:
    return str(module_name).partition(".")[0] in _NOT_THE_STEP
