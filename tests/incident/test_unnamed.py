"""A NaN that no variable holds any more when the exception is here."""

import math

import pytest
import torch
from torch import nn

from lightning_gradguard.incident.unnamed import nan_given_to_what_raised

NET = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
MATRIX = torch.eye(4)


def tell(step, raises=torch.linalg.LinAlgError):
    return nan_given_to_what_raised(NET, step, torch.ones(8, 4), raises("as in the run"))


def test_the_function_that_raised_is_named_with_what_it_was_given():
    assert tell(lambda m, x: torch.linalg.cholesky(m(x).T @ m(x) * math.nan)) == (
        "what torch.linalg.cholesky was given holds 16 NaN"
    )
    weights = torch.full((2, 3), math.nan)
    assert "multinomial was given" in tell(lambda m, x: torch.multinomial(weights.softmax(-1), 1), RuntimeError)
    assert "Tensor.cholesky" in tell(lambda m, x: (MATRIX * math.nan).cholesky())


@pytest.mark.parametrize(
    "step",
    [
        lambda m, x: torch.linalg.cholesky(-MATRIX),
        lambda m, x: (MATRIX * math.nan).sum() + torch.linalg.cholesky(-MATRIX).sum(),
        lambda m, x: m(x).sum(),
        lambda m, x: torch.ones(2) @ (MATRIX * math.nan),
    ],
    ids=["not positive", "a nan elsewhere", "nothing raised", "another error"],
)
def test_nothing_is_told_of_an_error_that_is_no_nans(step):
    assert tell(step) is None


def test_the_model_and_the_generators_are_as_they_were():
    before = [tensor.clone() for tensor in NET.state_dict().values()]
    seed = torch.get_rng_state()
    tell(lambda m, x: torch.linalg.cholesky(m(x).T @ m(x) * math.nan))
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(map(torch.equal, before, NET.state_dict().values()))
