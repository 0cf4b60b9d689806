"""One optimizer, or several that are taken as one, without what wraps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

Optimizer = torch.optim.Optimizer


class Optimizers:
    """The optimizers of one pipeline: one as a rule, several where they are taken as one.

    Args:
        given: what the user has at hand: an optimizer, a wrapper of one (Fabric's, accelerate's, Lightning's, anything
            with the real one in ``.optimizer``), or a sequence of them.

    Attributes:
        layers: for each optimizer what wraps it, the outermost first, and last the one that holds the parameters.
        plain: the optimizers that hold the parameters.

    Raises:
        TypeError: if something is no optimizer, nor the wrapper of one; says what was got.
        ValueError: if there is none.

    Example:
        >>> halves = [torch.optim.SGD([torch.ones(1)], lr=0.1), torch.optim.Adam([torch.ones(2)])]
        >>> [len(group["params"]) for group in Optimizers(halves).groups]
        [1, 1]
    """

    def __init__(self, given: Any) -> None:
        each = list(given) if isinstance(given, Sequence) else [given]
        if not each:
            raise ValueError("optimizer is an empty list: give the optimizers that are to be taken as one")
        self.layers: list[list[Any]] = [unwrap(one) for one in each]
        self.plain: list[Optimizer] = [layers[-1] for layers in self.layers]
        self._ids = frozenset(id(layer) for layers in self.layers for layer in layers)
        self._unscaled_here: list[list[Any]] = []

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Returns the parameter groups, one optimizer after the other."""
        if len(self.plain) == 1:
            return self.plain[0].param_groups
        return [group for optimizer in self.plain for group in optimizer.param_groups]

    @property
    def params(self) -> list[Tensor]:
        """Their parameters, in the order of the groups."""
        return [parameter for group in self.groups for parameter in group["params"]]

    def are(self, given: Sequence[Any]) -> bool:
        """Tells whether they are those of a sequence, each in its place."""
        return [id(layers[0]) for layers in self.layers] == list(map(id, given))

    def __contains__(self, optimizer: object) -> bool:
        """Whether it is one of them, or what wraps one."""
        return id(optimizer) in self._ids

    def unscale_once_(self, scaler: GradScaler) -> bool:
        """Brings their gradients into real units, unless that is done already.

        Optimizers that unscale inside ``step`` (fused Adam and its kin) reach the hook with scaled gradients; others
        were unscaled before. Asking the scaler, and not dividing ourselves, keeps its record of overflows right, so
        that it still skips the step and lowers the scale.

        Args:
            scaler: the live scaler.

        Returns:
            Whether a live scaler stands behind this step: then an overflow is its business.
        """
        if not scaler.is_enabled():
            return False
        self._unscaled_here = [layers for layers in self.layers if _unscale_once_(scaler, layers)]
        if len(self.plain) > 1:
            _share_overflow_(scaler, self.plain)
        return True

    def scale_again_(self, scaler: GradScaler, stepping: Optimizer, *, dropped: bool) -> None:
        """Leaves those that step later as they were found: Lightning unscales each just before its own step.

        A loss scale is a power of two, so that scaling back changes no bit. What a dropped step leaves to them is not
        finite: the scaler then drops their steps as well.

        Args:
            scaler: the live scaler.
            stepping: the one that steps now, and stays unscaled.
            dropped: whether the step is dropped.
        """
        for layers in self._unscaled_here:
            if layers[-1] is stepping:
                continue
            for group in layers[-1].param_groups:
                for parameter in group["params"]:
                    if dropped:
                        parameter.grad = torch.full_like(parameter, torch.nan)
                    elif parameter.grad is not None:
                        parameter.grad.mul_(scaler._get_scale_async())
            for layer in layers:
                scaler._per_optimizer_states.pop(id(layer), None)


def _unscale_once_(scaler: GradScaler, layers: Sequence[Optimizer]) -> bool:
    """Unscales through one of an optimizer's layers; the scaler then takes all of them for unscaled.

    The scaler knows optimizers by identity, and may be stepped with a wrapper or with what it wraps. They share one
    entry in its books, so that it neither unscales twice nor misses an overflow.

    Returns:
        Whether it was done here, and not before.
    """
    states = scaler._per_optimizer_states
    done = next((layer for layer in layers if states[id(layer)]["stage"] is not OptState.READY), None)
    if done is None:
        scaler.unscale_(layers[-1])
    for layer in layers:
        states[id(layer)] = states[id(done or layers[-1])]
    return done is None


def _share_overflow_(scaler: GradScaler, optimizers: Sequence[Optimizer]) -> None:
    """Makes an overflow of one that of all: what steps as one is dropped as one. No host sync."""
    found = [scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] for optimizer in optimizers]
    flags = [flag for of_one in found for flag in of_one.values()]
    if flags:
        any_of_them = torch.stack([flag.to(flags[0].device) for flag in flags]).amax(0)
        for of_one in found:
            for device in of_one:
                of_one[device] = any_of_them.to(device)


def unwrap(optimizer: Any) -> list[Any]:
    """Returns what wraps an optimizer, the outermost first, and last the one that holds the parameters.

    Raises:
        TypeError: if there is no optimizer in it.

    Example:
        >>> plain = torch.optim.SGD([torch.ones(1)], lr=0.1)
        >>> unwrap(plain) == [plain]
        True
    """
    layers = [optimizer]
    while hasattr(inner := getattr(layers[-1], "optimizer", None), "param_groups"):
        if any(inner is layer for layer in layers):
            break
        layers.append(inner)
    if isinstance(optimizer, type) or not hasattr(layers[-1], "param_groups"):
        got = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else repr(optimizer)
        raise TypeError(f"optimizer must be a torch optimizer, or a wrapper with one in .optimizer; got {got}")
    return layers
