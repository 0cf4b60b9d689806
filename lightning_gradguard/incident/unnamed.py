"""A NaN that no variable held: seen where the function that raised was given it, once the step is run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_gradguard.harmless.rng import RngState
from lightning_gradguard.incident.batch import named_tensors
from lightning_gradguard.incident.locate import localise
from lightning_gradguard.incident.trace import reals


class _Raising(TorchFunctionMode):
    """Looks at what a function of torch was given that raises: at nothing while all goes well.

    Attributes:
        error: what was raised first.
        given: the NaN among its arguments, in words; ``None`` if there was none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.given: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if self.error is None:
                self.error = error
                self.given = _nan_among(resolve_name(func) or func.__name__, (args, kwargs))
            raise


def nan_given_to_what_raised(
    module: nn.Module,
    step: Callable[[nn.Module, Any], Tensor | None],
    batch: Any,
    error: BaseException,
    *,
    rng: RngState | None = None,
    buffers: dict[str, Tensor] | None = None,
) -> str | None:
    """Runs a step again that has raised, and tells in words what NaN the function was given that raises.

    ``torch.linalg.cholesky(a @ b)`` says the same of a NaN as of any matrix that is not positive-definite, and nothing
    holds the product any more. Nothing stays changed, see :func:`~lightning_gradguard.incident.locate.localise`.

    Args:
        module: the model.
        step: ``step(module, batch)`` runs forward pass and loss.
        batch: of the step.
        error: what it raised; another kind of error the second time tells nothing.
        rng: state of the random number generators before the step.
        buffers: values of the buffers before the step, by name.

    Example:
        >>> import torch
        >>> step = lambda module, batch: torch.linalg.cholesky(module(batch) * float("nan"))
        >>> net, batch = nn.Linear(2, 2), torch.ones(2, 2)
        >>> nan_given_to_what_raised(net, step, batch, torch.linalg.LinAlgError())
        'what torch.linalg.cholesky was given holds 4 NaN'
    """
    raising = _Raising()
    localise(module, step, batch, rng=rng, buffers=buffers, context=raising)
    return raising.given if type(raising.error) is type(error) else None


def _nan_among(name: str, args: Any) -> str | None:
    for _, tensor in named_tensors(args):
        if tensor.is_floating_point() or tensor.is_complex():
            count = int(reals(tensor).isnan().sum())  # host sync: the step has failed
            if count:
                return f"what {name} was given holds {count} NaN"
    return None
