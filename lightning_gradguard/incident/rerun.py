"""Runs a training step again and leaves no trace of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.harmless.rng import RngState, capture_rng, restore_rng

_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})
# What a LightningModule sends to its Trainer from inside a step: a second run of the step must not log again.
_REPORTS = ("log", "log_dict", "log_image", "print")


@contextmanager
def untouched(
    module: nn.Module, *, rng: RngState | None = None, buffers: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Within it a step may be run again; afterwards the module and every generator are as they were.

    Puts back: buffers, gradients, attributes of every submodule (the state of metrics, counters, lists), training
    mode, random number generators. ``log`` and its kin of a LightningModule do nothing meanwhile. Parameters that
    the step writes to are put back by the :class:`~lightning_gradguard.incident.watcher.Recorder`, which sees
    each write before it happens; copying them all would need the memory of the model once more.

    Args:
        module: the model whose step is run.
        rng: state of the generators to run from; as they are now if not given.
        buffers: values of the buffers, by name, to run from; those left out are as they are now.
    """
    now = capture_rng()
    kept_buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    kept_grads = [(parameter, parameter.grad) for parameter in module.parameters()]
    kept_attributes = [(part, _copy_attributes(part)) for part in module.modules()]
    try:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if buffers is not None and name in buffers:
                    buffer.copy_(buffers[name])
        if rng is not None:
            restore_rng(rng)
        for name in _REPORTS:
            if callable(getattr(module, name, None)):
                module.__dict__[name] = _silent
        yield
    finally:
        for part, attributes in kept_attributes:
            _put_back_attributes(part, attributes)
        with torch.no_grad():
            for buffer, value in kept_buffers:
                buffer.copy_(value)
        for parameter, grad in kept_grads:
            parameter.grad = grad
        restore_rng(now)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log``."""


def _copy_attributes(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    """For each attribute the object itself and a copy of what is in it, where that can change in place."""
    kept: dict[str, tuple[Any, Any]] = {}
    for name, value in part.__dict__.items():
        if name in _REGISTRIES:
            kept[name] = (value, dict(value))
        elif isinstance(value, Tensor):
            kept[name] = (value, _keep(value))
        elif type(value) in (list, dict, set, deque):
            kept[name] = (value, [(item, _keep(item)) for item in value] if type(value) is list else value.copy())
        else:
            kept[name] = (value, None)
    return kept


def _keep(item: Any) -> tuple[Tensor, int] | None:
    """Returns a copy of a tensor and its version counter; ``None`` for what is no tensor or cannot be written to."""
    return (item.detach().clone(), item._version) if isinstance(item, Tensor) and not item.is_inference() else None


def _put_back(item: Any, kept: tuple[Tensor, int] | None) -> None:
    if kept is not None and item._version != kept[1]:
        item.copy_(kept[0])


@torch.no_grad()
def _put_back_attributes(part: nn.Module, kept: dict[str, tuple[Any, Any]]) -> None:
    for name in part.__dict__.keys() - kept.keys():
        del part.__dict__[name]
    for name, (value, copy) in kept.items():
        part.__dict__[name] = value
        if isinstance(value, Tensor):
            _put_back(value, copy)
        elif type(value) is list:
            value[:] = [item for item, _ in copy]
            for item, content in copy:
                _put_back(item, content)
        elif copy is not None:
            value.clear()
            value.extend(copy) if isinstance(value, deque) else value.update(copy)
