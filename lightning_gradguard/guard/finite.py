"""Which tensors of a training's state are not finite, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.names import join, module_names
from lightning_gradguard.measurement.sharding import local


class State:
    """The weights of a model and what its optimizers keep of them, looked at for NaN and infinities.

    Each look reads every tensor once, without a copy, and the host once.

    Args:
        module: where names come from.
        optimizers: whose parameters and state to look at.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(net.bias, float("nan"))
        >>> State(net, [torch.optim.SGD(net.parameters())]).weights()
        ("'bias'",)
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._module = module
        self._optimizers = list(optimizers)

    def weights(self) -> tuple[str, ...]:
        """Returns the names of parameters that are not finite, of those that the optimizers step."""
        return nonfinite(self._named_weights())

    def moments(self) -> tuple[str, ...]:
        """Returns what of the optimizers' state is not finite: ``"exp_avg_sq of 'head.weight'"``."""
        return nonfinite(self._named_moments())

    def _names(self) -> dict[int, str]:
        return {id(p): repr(name) for name, p in self._module.named_parameters(remove_duplicate=False)}

    def _named_weights(self) -> Iterator[tuple[str, Tensor]]:
        names = self._names()
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from ((names.get(id(p), "of no module"), p) for p in group["params"] if p.requires_grad)

    def _named_moments(self) -> Iterator[tuple[str, Tensor]]:
        names = self._names()
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items() if isinstance(state, dict) else ():
                    if isinstance(value, Tensor):
                        yield f"{key} of {names.get(id(parameter), 'a parameter of no module')}", value


def nonfinite(named: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Returns the names of the tensors that hold a NaN or an infinity."""
    return _where(named, lambda largest: ~largest.isfinite())


def holding_nan(named: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Returns the names of the tensors that hold a NaN."""
    return _where(named, torch.isnan)


@torch.no_grad()
def _where(named: Iterable[tuple[str, Tensor]], bad: Callable[[Tensor], Tensor]) -> tuple[str, ...]:
    """The names of tensors whose largest magnitude is bad; a NaN is the largest."""
    names, flags = [], []
    for name, tensor in named:
        if hasattr(tensor, "local_shards"):  # as FSDP keeps them in a checkpoint: each process has its own file
            continue
        values = local(tensor)
        values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
        if values.is_floating_point() and values.numel() and not values.is_meta and values.layout == torch.strided:
            names.append(name)
            flags.append(bad(torch.linalg.vector_norm(values, torch.inf)))  # the largest: it cannot overflow
    if not flags:
        return ()
    on_host = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()  # host sync: never in a quiet step
    return tuple(dict.fromkeys(name for name, found in zip(names, on_host, strict=True) if found))


def nonfinite_statistics(module: nn.Module) -> tuple[str, ...]:
    """Returns the running statistics of normalization layers that are not finite, as no mask or marker is."""
    layers = {part: name for part, name in module_names(module).items() if hasattr(part, "running_mean")}
    keys = ("running_mean", "running_var")
    named = ((repr(join(name, key)), getattr(part, key, None)) for part, name in layers.items() for key in keys)
    return nonfinite((name, buffer) for name, buffer in named if isinstance(buffer, Tensor))


def in_words(names: Sequence[str]) -> str:
    """The first five names, and how many more there are.

    Example:
        >>> in_words(["'a'", "'b'"])
        "'a', 'b'"
    """
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
