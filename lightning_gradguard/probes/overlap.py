"""Overlaps of a prediction with its targets (Dice, Jaccard, Tversky), known by the sums that they are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

_SUMS = 8  # the last ones that are remembered: an overlap needs three or four
_PRODUCTS = 4
_MOST = 4  # overlaps of one forward pass that are followed
_AS_THEY_ARE = ("clamp", "clamp_min", "squeeze", "view")
_ARITHMETIC = ("add", "sub", "mul", "div")
OPERATORS = frozenset({*_AS_THEY_ARE, *_ARITHMETIC, "sum", "mean", "pow", "where", "rsub", "neg", "log"})


@dataclass(frozen=True)
class _Piece:
    """A part of an overlap.

    Attributes:
        at: the tensor that it is.
        pair: prediction and target, where their product is in it.
        of: what was summed, or is to be; the product stands for itself.
        squared: whether squares of the prediction are in it, beside which no product is large.
        summed: whether it is a sum already.
        negative: whether it was multiplied by something below zero.
    """

    at: Tensor
    pair: tuple[Tensor, Tensor] | None
    of: tuple[Tensor, ...]
    squared: bool = False
    summed: bool = False
    negative: bool = False


@dataclass(frozen=True)
class Overlap:
    """An overlap on its way to a loss.

    Attributes:
        at: the tensor that it is in by now.
        given: the prediction.
        target: what it is to cover.
        bounded: whether it is bounded whatever the prediction is, as with squares in the denominator.
        rises: whether what it is in by now rises with it.
        alone: whether nothing else that leads to weights was added to it.
    """

    at: Tensor
    given: Tensor
    target: Tensor
    bounded: bool
    rises: bool = True
    alone: bool = True


class Overlaps:
    """Follows ``sum(p * y) / (sum(p) + sum(y))`` and its kin, operator by operator, to the loss that is made of it.

    The denominator is one of at least two sums, one of them of the prediction, or of its square or its product with
    something else: a mean that is weighted by a mask, or by what is learned, has but one.

    Example:
        >>> import torch
        >>> p, y = torch.tensor([0.5, 0.5], requires_grad=True), torch.tensor([1.0, 0.0])
        >>> seen = Overlaps()
        >>> steps = [("mul", (p, y), product := p * y), ("sum", (product,), inside := product.sum())]
        >>> steps += [("sum", (p,), one := p.sum()), ("sum", (y,), other := y.sum())]
        >>> steps += [("add", (one, other), both := one + other), ("div", (inside, both), share := inside / both)]
        >>> steps += [("rsub", (share, 1), loss := 1 - share)]
        >>> for name, args, value in steps:
        ...     seen.see(name, args, value)
        >>> (found := seen.take()[0]).at is loss, found.given is p, found.rises
        (True, True, False)
    """

    def __init__(self) -> None:
        self._products: deque[_Piece] = deque(maxlen=_PRODUCTS)
        self._sums: deque[_Piece] = deque(maxlen=_SUMS)
        self._found: list[Overlap] = []

    def take(self) -> list[Overlap]:
        """What was found, and how far it was followed; lets go of everything."""
        self._products.clear()
        self._sums.clear()
        found, self._found = self._found, []
        return found

    def see(self, name: str, args: Sequence[Any], value: Tensor) -> None:
        """One of the operators that such a loss may be made of."""
        if self._found and self._go_on(name, args, value):
            return
        if name in ("sum", "mean"):
            self._add_up(args[0], value)
        elif (pieces := [p for a in args[:3] if isinstance(a, Tensor) and (p := _at(a, self._sums))]) != []:
            self._combine(name, args, pieces, value)
        elif name in ("mul", "add", "pow"):
            self._begin(name, args, value)

    def _begin(self, name: str, args: Sequence[Any], value: Tensor) -> None:
        """The product of a prediction with a target, their sum, or the square of a prediction."""
        one, other = args[0], args[1]
        if name == "pow" or one is other:
            if one.requires_grad and (one is other or (isinstance(other, int | float) and other == 2)):
                self._products.append(_Piece(value, None, (one,), squared=True))
        elif name != "pow" and isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
            if one.requires_grad == other.requires_grad or one.numel() < 2 or one.is_complex() or other.is_complex():
                return
            pair = (one, other) if one.requires_grad else (other, one)
            self._products.append(_Piece(value, pair, (value,)) if name == "mul" else _Piece(value, None, pair))

    def _add_up(self, what: Tensor, value: Tensor) -> None:
        if (piece := _at(what, self._sums) or _at(what, self._products)) is not None:
            self._sums.append(replace(piece, at=value, summed=True))
        elif what.numel() > 1:
            self._sums.append(_Piece(value, None, (what,), summed=True))

    def _combine(self, name: str, args: Sequence[Any], pieces: Sequence[_Piece], value: Tensor) -> None:
        if name == "div" and len(pieces) == 2:
            inside, whole = pieces
            known = inside.pair is not None and len(whole.of) > 1 and len(self._found) < _MOST
            if known and inside.pair is not None and self._holds_prediction(whole, *inside.pair):
                self._found.append(Overlap(value, *inside.pair, whole.squared, inside.negative == whole.negative))
            return
        if name in ("add", "sub") and len(pieces) == 2:
            one, other = pieces
            both = tuple({id(t): t for t in (*one.of, *other.of)}.values())
            self._sums.append(replace(one, at=value, of=both, squared=one.squared or other.squared))
        elif name in (*_ARITHMETIC, *_AS_THEY_ARE, "where", "neg"):
            piece = pieces[-1] if name == "where" else pieces[0]
            turned = _turns(name, 0, args[1] if len(args) > 1 else None) is True
            self._sums.append(replace(piece, at=value, negative=piece.negative != turned))

    def _holds_prediction(self, whole: _Piece, given: Tensor, target: Tensor) -> bool:
        """Whether a sum is one over the prediction too: itself, or what it has beside the target."""
        others = [p.pair for p in self._products if p.pair is not None and any(p.at is t for t in whole.of)]
        return any(t is given for t in whole.of) or any(one is given and other is not target for one, other in others)

    def _go_on(self, name: str, args: Sequence[Any], value: Tensor) -> bool:
        """Follows what was found one operator further; whether this is one that it goes through."""
        places = [
            (i, k) for i, found in enumerate(self._found) for k in (0, 1) if len(args) > k and args[k] is found.at
        ]
        for i, k in places:
            found = self._found[i]
            other = args[1 - k] if len(args) > 1 else None
            turns = _turns(name, k, other)
            alone = found.alone and not (
                isinstance(other, Tensor) and other.requires_grad and not any(other is f.at for f in self._found)
            )
            if turns is not None:
                self._found[i] = replace(found, at=value, rises=found.rises != turns, alone=alone)
        return bool(places)


def _turns(name: str, place: int, other: Any) -> bool | None:
    """Whether a rise becomes a fall by an operator; ``None`` where nobody knows."""
    if name in ("neg", "rsub") or (name == "sub" and place == 1):
        return True
    if name in ("mul", "div") and place == 0 and isinstance(other, int | float) and other != 0:
        return other < 0
    rises = name in ("add", "sub", "sum", "mean", "pow", "log", *_AS_THEY_ARE)
    return False if rises else None


def _at(tensor: Tensor, pieces: Sequence[_Piece]) -> _Piece | None:
    return next((piece for piece in reversed(pieces) if piece.at is tensor), None)
