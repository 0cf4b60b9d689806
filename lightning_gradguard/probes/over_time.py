"""The gradient over time of one recurrent module, by a pass of its own over a few sequences."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_gradguard.measurement.sharding import is_distributed
from lightning_gradguard.measurement.tensors import accumulator
from lightning_gradguard.probes.plain import plain_values

_KINDS: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)


def norms_over_time(
    module: nn.RNNBase, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, max_sequences: int
) -> Tensor | None:
    """||d h_T / d x_t|| for each time step t of a call that was just made; ``None`` where it cannot be told.

    The module's call is made again with its first sequences: the last output h_T, projected on a fixed random
    direction, is differentiated with respect to the input. That leaves the user's graph, gradients, generators and
    buffers as they were.

    Of packed sequences the longest ones are taken. Not measured, and left out: nested and sparse sequences; inputs
    under ``torch.func`` or inference mode; weights that are sharded; and subclasses with a ``forward`` of their own,
    unless ``super().forward``, called with the first argument and the one named ``hx``, gives the output that theirs
    gave.

    Args:
        module: that was called.
        args: with what.
        kwargs: likewise.
        output: what it gave.
        max_sequences: how many sequences of the batch to look at.
    """
    base = next((kind for kind in type(module).__mro__ if kind in _KINDS), None)
    found = _inputs(module, args, kwargs)
    if base is None or found is None or any(map(is_distributed, module.parameters())):
        return None
    x, states = found
    time, batch = (1, 0) if module.batch_first else (0, 1)
    few = min(max_sequences, x.shape[batch])
    # Clones: autograd takes no inference tensors, and views of the user's tensors would share their version counters.
    x = x.narrow(batch, 0, few).detach().clone().requires_grad_()
    states = [state.narrow(1, 0, few).detach().clone() for state in states]
    with _apart(module, x):
        hidden = None if not states else tuple(states) if base is nn.LSTM else states[0]
        # The recurrence of the class itself, not module(...): no hook sees this pass.
        result = base.forward(module, x, hidden)[0]
        if _has_own_forward(module, base) and not _is_alike(result, output, batch):
            return None
        last = result.select(time, -1)[:, : module.proj_size or module.hidden_size]
        (gradient,) = torch.autograd.grad((last * _direction_like(last)).sum(), x)
    over_time = gradient.movedim(time, 0).flatten(1)
    return torch.linalg.vector_norm(over_time, dim=1, dtype=accumulator(over_time.dtype))


def _direction_like(last: Tensor) -> Tensor:
    """Returns a random direction in the space of an output: the same at each call, and without the user's generator."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(last.shape[-1], generator=generator, dtype=torch.float32, device="cpu").to(last)


def _inputs(
    module: nn.RNNBase, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Sequence[Tensor]] | None:
    """Input and states of a call, both with a dimension for the batch; ``None`` where they are not what they seem."""
    arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    first = next(iter(arguments.values()), None)
    given = arguments.get("hx")
    states = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    if isinstance(first, PackedSequence):
        return (
            None
            if any(plain_values(value) is None for value in (first.data, *states))
            else _longest(first, states, module.batch_first)
        )
    x = plain_values(first)
    if x is None or torch.is_inference_mode_enabled() or x.dim() not in (2, 3) or x.shape[-1] != module.input_size:
        return None
    if any(plain_values(state) is None for state in states):
        return None
    if x.dim() == 2:  # one sequence, without a batch
        return x.unsqueeze(0 if module.batch_first else 1), [state.unsqueeze(1) for state in states]
    return x, states


def _longest(packed: PackedSequence, states: Sequence[Tensor], batch_first: bool) -> tuple[Tensor, Sequence[Tensor]]:
    """The sequences of full length, as one tensor, and the states that they began with."""
    starts = packed.batch_sizes.cumsum(0) - packed.batch_sizes  # they are on the host
    rows = starts[:, None] + torch.arange(int(packed.batch_sizes[-1]), device="cpu")
    x = packed.data[rows.to(packed.data.device)]
    places = packed.sorted_indices
    if places is not None:
        states = [state.index_select(1, places) for state in states]
    return (x.transpose(0, 1) if batch_first else x), states


@contextmanager
def _apart(module: nn.RNNBase, x: Tensor) -> Iterator[None]:
    """A graph of our own, whatever is going on around: nothing of it is seen outside, and nothing drawn is missed."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        # Activation checkpointing counts what autograd saves; these innermost hooks keep ours from it.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        if module.training and module.dropout:
            devices = [] if x.device.type == "cpu" else [x.device]
            kind = "cuda" if x.device.type == "cpu" else x.device.type
            stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
        if x.device.type == "cuda" and not module.training:  # cuDNN has no backward pass there
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _has_own_forward(module: nn.RNNBase, base: type[nn.RNNBase]) -> bool:
    return "forward" in module.__dict__ or type(module).forward is not base.forward


def _is_alike(result: Tensor, output: Any, batch: int) -> bool:
    theirs = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(theirs, Tensor):
        return False
    theirs = theirs.detach() if theirs.dim() == result.dim() else theirs.detach().unsqueeze(batch)
    if theirs.dim() != result.dim() or theirs.shape[batch] < result.shape[batch]:
        return False
    theirs = theirs.narrow(batch, 0, result.shape[batch])
    if theirs.shape != result.shape:
        return False
    return torch.allclose(theirs.float(), result.detach().float(), rtol=1e-2, atol=1e-4)  # host sync: a sampled step
