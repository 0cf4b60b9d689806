"""What a dropped step must not leave behind in an optimizer: counters, averages, numbers in its parameter groups."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

Restore = Callable[[], Any]


class DroppedStep:
    """Makes the step that optimizers are about to take, or are in the middle of, one that leaves nothing behind.

    Gradients that are gone keep torch's own optimizers still. Others count their steps in ``param_groups``, average
    weights, or fail without gradients. So ``step`` does nothing at all, once: neither the optimizer's hooks run nor a
    closure that it is called with. Where the optimizer steps already, and has called back through its closure, its
    numbers are put back when it has ended.

    Args:
        layers: for each optimizer what wraps it, the outermost first, and last the one that holds the parameters.
        scaled: whether a live loss scaler stands behind the step. What wraps an optimizer may then step and update the
            scaler, so that its own ``step`` goes on, unless it is an optimizer in its own right.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        >>> dropped = DroppedStep([[optimizer]])
        >>> optimizer.step()  # does nothing; the next one steps again
        >>> "step" in vars(optimizer)
        False
    """

    def __init__(self, layers: Sequence[Sequence[Any]], *, scaled: bool = False) -> None:
        self._ends: list[Callable[[], None]] = []
        self._stepping: list[Any] = []
        for wrapped in layers:
            own = _with_state(wrapped)
            if any(_is_stepping(layer) for layer in own):
                self._ends.append(_restore_after_step(own))
                self._stepping += own
            else:
                idle = [layer for layer in (own if scaled else wrapped) if not _is_stepping(layer)]
                self._ends += [_do_nothing_once(layer) for layer in idle if hasattr(layer, "__dict__")]

    def end(self) -> None:
        """Takes back what still waits for a step: one that never came, or that calls no hook at its end."""
        for end in self._ends:
            end()
        self._ends = []

    def has_failed(self, error: BaseException) -> bool:
        """Tells whether an optimizer that was stepping has raised an error itself, and not what it had called back.

        Some cannot do without gradients (Adai of pytorch_optimizer): their step is over, and has left nothing behind.
        """
        trace, own = error.__traceback__, False
        while trace is not None:
            code, called = trace.tb_frame.f_code, trace.tb_frame.f_locals.get("self")
            if any(called is one for one in self._stepping):
                own = "step" in code.co_name or own
            elif "closure" in code.co_name:
                own = False
            trace = trace.tb_next
        return own


def _with_state(layers: Sequence[Any]) -> list[Any]:
    """The layers that are optimizers in their own right, not just a way to call another (Fabric's, accelerate's)."""
    plain = layers[-1]
    return [one for one in layers if one is plain or _is_hooked(one) or _state(one, plain) is not plain.state]


def _is_hooked(optimizer: Any) -> bool:
    """Whether torch calls step hooks around its ``step``, as it does for each optimizer that was made as one."""
    return getattr(type(optimizer).step, "hooked", False)


def _state(optimizer: Any, plain: Any) -> Any:
    return getattr(optimizer, "state", plain.state)


def _is_stepping(optimizer: Any) -> bool:
    """Whether we were called from inside its ``step``; looks up the stack, which only a bad step pays for."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if "step" in frame.f_code.co_name and frame.f_locals.get("self") is optimizer:
            return True
    return False


def _do_nothing_once(optimizer: Any) -> Callable[[], None]:
    """Puts a step that does nothing in the place of the real one; returns what takes it away."""
    real, own = optimizer.step, vars(optimizer).get("step")
    waiting = True

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        another = not waiting or _has_gradients(self)
        end()
        # Where gradients are there again, this is not the step that was dropped.
        return real(*args, **kwargs) if another else None

    def end() -> None:
        nonlocal waiting
        waiting = False
        if vars(optimizer).get("step") is not method:
            return  # gone already, or wrapped by somebody else: it hands on to the real one from now on
        if own is None:
            del vars(optimizer)["step"]
        else:
            vars(optimizer)["step"] = own

    if hasattr(real, "_wrapped_by_lr_sched"):
        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        optimizer._opt_called = True  # a scheduler would warn that it was stepped before its optimizer
    vars(optimizer)["step"] = method = MethodType(step, optimizer)  # past a wrapper that hands attributes on
    return end


def _has_gradients(optimizer: Any) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def _restore_after_step(layers: Sequence[Any]) -> Callable[[], None]:
    """Remembers the numbers of optimizers that are stepping; returns what puts them back, once."""
    restores = [restore for layer in layers for restore in _remember_numbers(layer)]
    handle: RemovableHandle | None = None

    def end(*ignored: Any) -> None:
        for restore in restores:
            restore()
        restores.clear()
        if handle is not None:
            handle.remove()

    if _is_hooked(layers[0]):
        handle = layers[0].register_step_post_hook(end)
    return end


def _remember_numbers(optimizer: Any) -> list[Restore]:
    """What puts back all that an optimizer holds beside weights and what belongs to single ones of them."""
    restores = [
        _remember_items(group, [key for key in group if key != "params"], added=True)
        for group in optimizer.param_groups
    ]
    shared = [key for key in optimizer.state if not isinstance(key, Tensor)]
    own = vars(optimizer)
    numbers = [key for key, value in own.items() if isinstance(value, int | float) and not key.startswith("_")]
    return [
        *restores,
        _remember_items(optimizer.state, shared, added=True),
        _remember_items(own, numbers, added=False),
    ]


def _remember_items(items: dict[Any, Any], keys: Sequence[Any], *, added: bool) -> Restore:
    """What puts back some items of a dict, and removes those that were added since, if that is wished."""
    before, values = set(items), {key: _remember(items[key]) for key in keys}

    def restore() -> None:
        for key in [key for key in items if added and key not in before and not isinstance(key, Tensor)]:
            del items[key]
        for key, value in values.items():
            items[key] = value()

    return restore


def _remember(value: Any) -> Restore:
    """What gives a value back as it is now: the same object, with what was in it."""
    if isinstance(value, Tensor):
        copied = value.detach().clone()
        return lambda: _write(value, copied)
    if isinstance(value, list):
        elements = [_remember(element) for element in value]
        return lambda: _refill(value, [element() for element in elements])
    if isinstance(value, dict):
        entries = {key: _remember(entry) for key, entry in value.items()}
        return lambda: _replace(value, {key: entry() for key, entry in entries.items()})
    return lambda: value  # numbers, words, tuples: a change would have been another object


@torch.no_grad()
def _write(tensor: Tensor, values: Tensor) -> Tensor:
    return tensor.copy_(values)


def _refill(elements: list[Any], values: list[Any]) -> list[Any]:
    elements[:] = values
    return elements


def _replace(entries: dict[Any, Any], values: dict[Any, Any]) -> dict[Any, Any]:
    entries.clear()
    entries.update(values)
    return entries
