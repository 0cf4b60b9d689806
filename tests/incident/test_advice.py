"""Advice goes by the exact operator and what went into it: the right one, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradguard.incident.advice import advice, name_of
from lightning_gradguard.incident.locate import localise

MASK = torch.tensor([[True] * 4, [False] * 4])
INF = float("inf")


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(MASK, -INF)


# The function of the layer's output, its input, and words of the advice.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, str | None]] = {
    "softmax of a masked row": (lambda y: masked(y).softmax(-1), torch.randn(2, 4), "every entry is masked"),
    "log_softmax of a masked row": (
        lambda y: masked(y).log_softmax(-1)[:, 0],
        torch.randn(2, 4),
        "every entry is masked",
    ),
    "layer norm of large numbers": (lambda y: F.layer_norm(y, (4,)), torch.randn(2, 4) * 1e25, "variance overflows"),
    "layer norm of equal numbers": (
        lambda y: F.layer_norm(y * 0 + 1, (4,), eps=0.0),
        torch.randn(2, 4),
        "raise the layer's eps",
    ),
    "group norm of large numbers": (lambda y: F.group_norm(y, 2), torch.randn(2, 4) * 1e25, "variance overflows"),
    "a product that overflows": (lambda y: y * 1e38, torch.randn(2, 4) * 100, "passed the largest number"),
    "expand is not exp": (
        lambda y: (y[:1] * 1e38).expand(3, 4) * 2,
        torch.ones(2, 4) * 100,
        "passed the largest number",
    ),
    "exp": (lambda y: y.exp(), torch.full((2, 4), 1e4), "exp of more than 88"),
    "0 / 0": (lambda y: y * 0 / (y * 0), torch.randn(2, 4), "division by zero"),
    "deviation of one": (lambda y: y[:1].std(dim=0), torch.randn(2, 4), "a single element is NaN"),
    "root of a negative number": (lambda y: (y - 1e3).sqrt(), torch.randn(2, 4), "root of a negative number"),
    "logarithm": (lambda y: (y - 1e3).log(), torch.randn(2, 4), "logarithm of 0"),
    "arc cosine": (lambda y: (y + 1e3).acos(), torch.randn(2, 4), "outside of where the function is defined"),
    "slope of a root": (lambda y: (y * 0).sqrt(), torch.randn(2, 4), "slope of a square root"),
    "slope of a power": (lambda y: (y * 0).abs() ** 0.5, torch.randn(2, 4), "slope of x**p"),
    "slope of a logarithm that where throws away": (
        lambda y: torch.where(y * 0 > 1, (y * 0).log(), y),
        torch.randn(2, 4),
        "logarithm at 0",
    ),
    "a mask in arithmetic": (lambda y: y * 0 * torch.full((4,), INF), torch.randn(2, 4), "an infinity that a mask"),
    "an operator without advice": (lambda y: torch.special.i0(y + 1e3), torch.randn(2, 4), None),
}


@pytest.mark.parametrize(("function", "x", "words"), CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:std")
def test_the_advice_fits_the_operator(function, x, words):
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    found = localise(layer, lambda module, batch: function(module(batch)).mean(), x)
    assert found.found
    given = advice(asdict(found))
    assert (given is None) if words is None else (given is not None and words in " ".join(given)), (str(found), given)


def test_an_infinity_among_the_inputs_of_the_first_nan_was_put_there_by_a_mask():
    found = localise(nn.Linear(4, 4), lambda m, x: masked(m(x)).softmax(-1).mean(), torch.randn(2, 4))
    assert "from inputs: float32[2, 4]: " in str(found)
    assert "(4 Inf, put there by a mask)" in str(found)


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("aten.log_.default", "log"),
        ("aten._softmax.default", "_softmax"),
        ("aten.div.Tensor", "div"),
        ("mine::op", "mine::op"),
    ],
)
def test_an_operator_has_a_name_without_overload(operator, name):
    assert name_of(operator) == name
