"""Cross-entropies that are written by hand, known by the operators that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_ONE = 1e-3  # by which shares of classes may miss one in sum


@dataclass(frozen=True)
class Likelihood:
    """Log-probabilities of what was the case, on their way to a loss.

    Attributes:
        at: the tensor that they are in by now.
        constant: what the best constant prediction would cost, summed over samples; NaN where nobody knows.
        reduced: whether they are a single number already.
    """

    at: Tensor
    constant: Tensor
    reduced: bool = False


class Likelihoods:
    """Follows log-probabilities from a ``log_softmax`` over picking those of the targets to their sum or mean.

    They are picked by ``gather``, by indices, or by a product with shares of classes that do not lead to weights. What
    multiplies them by anything else on their way, as a policy's advantage does, makes another loss of them.

    Example:
        >>> seen = Likelihoods()
        >>> logs = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True).log_softmax(1)
        >>> seen.log_softmax(logs, 1)
        >>> index = torch.tensor([[1], [0]])
        >>> seen.see("gather", (logs, 1, index), picked := logs.gather(1, index))
        >>> seen.see("mean", (picked,), mean := picked.mean())
        >>> seen.see("neg", (mean,), -mean)
        >>> value, constant = seen.take()[0]
        >>> round(value.item(), 4), round(constant.item(), 4)
        (0.3133, 0.6931)
    """

    def __init__(self) -> None:
        self._logs: tuple[Tensor, int] | None = None
        self._followed: Likelihood | None = None
        self._found: list[tuple[Tensor, Tensor]] = []

    def log_softmax(self, value: Tensor, dim: int) -> None:
        """Log-probabilities over a dimension, of what leads to weights."""
        self._logs = (value, dim % value.dim()) if value.dim() > 1 else None

    def see(self, name: str, args: Sequence[Any], value: Tensor) -> None:
        """One of the operators that such a loss may be made of."""
        if self._logs is not None and (picked := _picked(*self._logs, name, args)) is not None:
            self._finish()
            self._followed = Likelihood(value, picked)
        elif self._followed is not None and args[0] is self._followed.at:
            self._go_on(self._followed, name, args, value)

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Of each that came to an end the loss and what the best constant prediction costs; it forgets the rest."""
        self._finish()
        self._logs = None
        found, self._found = self._found, []
        return found

    def _go_on(self, now: Likelihood, name: str, args: Sequence[Any], value: Tensor) -> None:
        self._followed = None
        if name in ("neg", "squeeze", "view") or (name == "sum" and value.dim()):
            self._followed = replace(now, at=value)
        elif name in ("sum", "mean") and not now.reduced:
            self._followed = Likelihood(value, now.constant / (now.at.numel() if name == "mean" else 1), reduced=True)
        elif name == "div" and now.reduced and not isinstance(args[1], Tensor):
            self._followed = replace(now, at=value, constant=now.constant / args[1])
        elif now.reduced:
            self._found.append((now.at.detach().abs(), now.constant))

    def _finish(self) -> None:
        if self._followed is not None and self._followed.reduced:
            self._found.append((self._followed.at.detach().abs(), self._followed.constant))
        self._followed = None


def _picked(logs: Tensor, dim: int, name: str, args: Sequence[Any]) -> Tensor | None:
    """What the best constant prediction costs, if log-probabilities of targets are picked here."""
    if name == "gather" and args[0] is logs and args[1] % logs.dim() == dim and args[2].shape[dim] == 1:
        return _of_classes(args[2])
    if name == "index" and args[0] is logs and len(args[1]) > dim and isinstance(args[1][dim], Tensor):
        whole = len(args[1]) == logs.dim() and all(isinstance(index, Tensor) for index in args[1])
        return _of_classes(args[1][dim]) if whole and args[1][dim].dtype in (torch.int32, torch.int64) else None
    if name == "mul":
        one, other = args[0], args[1]
        shares = other if one is logs else one if other is logs else None
        if isinstance(shares, Tensor) and shares.shape == logs.shape and not shares.requires_grad:
            return _of_shares(shares.float(), dim)
    return None


def _of_classes(classes: Tensor) -> Tensor:
    counts = torch.bincount(
        classes.reshape(-1).clamp(min=0)
    ).float()  # one from the end is rare, and counted as the first
    return -torch.special.xlogy(counts, counts / counts.sum()).sum()


def _of_shares(shares: Tensor, dim: int) -> Tensor:
    """Of shares with either sign, since the minus stands with them; weights that are no shares have no such cost."""
    shares = shares * shares.sum().sign()
    sums = shares.sum(dim)
    each = shares.sum([d for d in range(shares.dim()) if d != dim])
    cost = -torch.special.xlogy(each, each / each.sum()).sum()
    return cost.where(((sums - 1).abs().max() < _ONE) & (shares.min() >= 0), torch.nan)
