"""Says what is odd about a sample: what lies outside of the range of the others, or is not finite at all."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from lightning_gradguard.incident.batch import named_numbers, named_tensors, walk
from lightning_gradguard.incident.rows import Rows
from lightning_gradguard.incident.trace import reals

_SHOWN = 60  # characters of a string


class _Look(NamedTuple):
    """What one row of one part holds: its numbers, and how many of them are none."""

    low: float
    high: float
    nan: int
    inf: int
    numel: int
    words: str | None


def what_is_odd(rows: Rows, index: int, others_left_out: Collection[int]) -> tuple[str, ...]:
    """For each part of the batch in which a sample differs from the rest, what it holds and what the rest does.

    Args:
        rows: the batch.
        index: of the sample.
        others_left_out: samples that are odd themselves and are not part of the rest.
    """
    found = []
    for path, items in rows.parts():
        looks = [_look(item) for item in items]
        rest = [look for i, look in enumerate(looks) if i != index and i not in others_left_out]
        if (words := _compare(looks[index], rest)) is not None:
            found.append(f"{path}: {words}")
    return tuple(found)


def _look(item: Any) -> _Look:
    numbers = [torch.tensor(values, device="cpu") for _, values in named_numbers(item)]
    if type(item) in (int, bool):
        numbers = [torch.tensor([float(item)], device="cpu")]
    values = [reals(tensor).flatten().double() for _, tensor in named_tensors(item)] + [n.double() for n in numbers]
    together = torch.cat(values) if values else torch.empty(0, device="cpu")
    finite = together[together.isfinite()]
    low, high = (float(v) for v in finite.aminmax()) if finite.numel() else (math.nan, math.nan)
    words = next((part for _, part in walk(item) if isinstance(part, str)), None)
    nan, inf = int(together.isnan().sum()), int(together.isinf().sum())
    return _Look(low, high, nan, inf, together.numel(), words)


def _compare(one: _Look, rest: list[_Look]) -> str | None:
    lows = [look.low for look in rest if not math.isnan(look.low)]
    highs = [look.high for look in rest if not math.isnan(look.high)]
    numels = [look.numel for look in rest]
    outside = bool(lows) and (one.low < min(lows) or one.high > max(highs))
    constant = one.numel > 1 and one.low == one.high and not any(r.low == r.high and r.numel > 1 for r in rest)
    size = bool(numels) and not min(numels) <= one.numel <= max(numels)
    words = one.words is not None and bool(rest) and _is_odd_word(one.words, [r.words for r in rest])
    if not (one.nan or one.inf or outside or constant or size or words):
        return None
    said = [f"{count} {kind}" for count, kind in ((one.nan, "NaN"), (one.inf, "Inf")) if count]
    if not math.isnan(one.low):
        alike = f"{one.low:.4g}" if one.low == one.high else f"{one.low:.4g} … {one.high:.4g}"
        said.append(f"all {alike}" if constant else alike)
    if size:
        said.append(f"{one.numel} elements" if one.numel else "empty")
    if words and one.words is not None:
        said.append(repr(one.words[:_SHOWN]))
    return f"{', '.join(said)}; the rest: {_the_rest(lows, highs, numels if size else [])}"


def _the_rest(lows: list[float], highs: list[float], numels: list[int]) -> str:
    said = [f"{min(lows):.4g} … {max(highs):.4g}"] if lows else []
    said += [f"{min(numels)} … {max(numels)} elements"] if numels else []
    return ", ".join(said) or "nothing to compare with"


def _is_odd_word(word: str, others: list[str | None]) -> bool:
    lengths = [len(other) for other in others if other is not None]
    return bool(lengths) and not min(lengths) <= len(word) <= max(lengths)
