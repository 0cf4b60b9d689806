"""Kullback-Leibler divergences, known by the operators that ``kl_div`` is made of: torch has none of its own for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """What ``kl_div`` was given.

    Attributes:
        given: where log-probabilities are due.
        target: where probabilities are due, or their logarithms.
        in_logarithms: whether the target is taken for logarithms: ``log_target=True``.
    """

    given: Tensor
    target: Tensor
    in_logarithms: bool


class Divergences:
    """Follows the two ways in which ``kl_div`` counts, operator by operator; it keeps the last tensors of each.

    ``xlogy(target, target) - target * given``, and with ``log_target`` ``exp(target) * (target - given)``.

    Example:
        >>> import torch
        >>> given, target = torch.randn(2, 3, requires_grad=True), torch.rand(2, 3)
        >>> seen = Divergences()
        >>> seen.product((target, given), product := target * given) is None
        True
        >>> seen.entropy((target, target), entropy := torch.xlogy(target, target))
        >>> seen.difference((entropy, product), entropy - product).given is given
        True
    """

    def __init__(self) -> None:
        self._product: tuple[Tensor, Tensor, Tensor] | None = None  # what came out, and of what
        self._difference: tuple[Tensor, Tensor, Tensor] | None = None
        self._entropy: tuple[Tensor, Tensor] | None = None
        self._exponential: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """Lets go of all tensors."""
        self._product = self._difference = self._entropy = self._exponential = None

    def entropy(self, args: Sequence[object], value: Tensor) -> None:
        """Of ``xlogy``: what is given twice may be a target."""
        if isinstance(args[0], Tensor) and args[0] is args[1]:
            self._entropy = (value, args[0])

    def exponential(self, args: Sequence[object], value: Tensor) -> None:
        """Of ``exp``: what it is taken of may be a target in logarithms."""
        if isinstance(args[0], Tensor):
            self._exponential = (value, args[0])

    def product(self, args: Sequence[object], value: Tensor) -> Divergence | None:
        """The divergence that a product completes, if any."""
        if (pair := _target_and_given(args)) is None:
            return None
        one, other = pair
        self._product = (value, one, other)
        if self._difference is None or self._exponential is None:
            return None
        difference, target, given = self._difference
        if other is difference and one is self._exponential[0] and target is self._exponential[1]:
            return Divergence(given, target, in_logarithms=True)
        return None

    def difference(self, args: Sequence[object], value: Tensor) -> Divergence | None:
        """The divergence that a difference completes, if any."""
        if (pair := _target_and_given(args)) is None:
            return None
        one, other = pair
        self._difference = (value, one, other)
        if self._product is None or self._entropy is None:
            return None
        product, target, given = self._product
        if one is self._entropy[0] and other is product and target is self._entropy[1]:
            return Divergence(given, target, in_logarithms=False)
        return None


def _target_and_given(args: Sequence[object]) -> tuple[Tensor, Tensor] | None:
    """The two, if the second leads to weights and the first does not."""
    one, other = args[0], args[1]
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return None
    return None if one.requires_grad or not other.requires_grad else (one, other)
