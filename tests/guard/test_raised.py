"""What is not finite where a step has raised."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gradguard.guard.raised import describe, find_nonfinite, may_be_a_nan


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def test_the_batch_is_named_with_the_place():
    batch = {"x": torch.zeros(3, 2), "y": torch.ones(2)}
    batch["x"][2, 1] = math.nan
    assert find_nonfinite(ValueError(), batch, []) == ("batch['x'] holds 1 NaN at [2, 1]",)


def test_activations_are_found_in_the_variables_of_the_functions_that_ran():
    def step():
        hidden = torch.tensor([1.0, math.nan])
        torch.distributions.Normal(hidden, torch.ones(2))

    found = find_nonfinite(raised(step), torch.zeros(1), [])
    assert found[0].startswith("hidden in step (test_raised.py:")
    assert found[0].endswith("holds 1 NaN at [1]")


def test_a_mask_of_minus_infinity_is_no_fault_and_an_overflow_is():
    assert describe("mask", torch.tensor([0.0, -math.inf])) is None
    assert describe("loss", torch.tensor(math.inf)) == "loss holds 1 Inf"


@pytest.mark.parametrize("tensor", [torch.zeros(0), torch.tensor([1]), torch.empty(2, device="meta")])
def test_what_cannot_be_read_or_cannot_be_nan_is_fine(tensor):
    assert describe("it", tensor) is None


def test_complex_and_sparse_tensors_are_read():
    assert describe("z", torch.tensor([0j, complex(0, math.nan)])) == "z holds 1 NaN at [1]"
    assert "1 NaN" in describe("s", torch.tensor([0.0, math.nan]).to_sparse())


def test_autograds_own_word_is_taken():
    error = RuntimeError("Function 'SqrtBackward0' returned nan values in its 0th output.")
    assert find_nonfinite(error, None, []) == ("a gradient in the backward pass",)


def test_a_mistake_in_the_code_is_never_a_nan():
    assert not may_be_a_nan(NameError("x"))
    assert not may_be_a_nan(KeyboardInterrupt())
    assert may_be_a_nan(ValueError("Expected parameter loc to satisfy the constraint Real()"))


def in_the_cause():
    try:
        torch.distributions.Normal(torch.full((1,), math.nan), 1.0)
    except ValueError as error:
        raise RuntimeError("my step has failed") from error


def in_the_context():
    try:
        torch.distributions.Normal(torch.full((1,), math.nan), 1.0)
    except ValueError:
        raise RuntimeError("my step has failed")  # noqa: B904


class Group(Exception):
    """As an ``ExceptionGroup``, which Python has from 3.11 on."""

    def __init__(self, *exceptions):
        self.exceptions = (KeyError("x"), *exceptions)


def in_a_group():
    try:
        torch.distributions.Normal(torch.full((1,), math.nan), 1.0)
    except ValueError as error:
        raise Group(error) from None


@pytest.mark.parametrize("fails", [in_the_cause, in_the_context, in_a_group])
def test_what_an_exception_came_of_is_looked_at_too(fails):
    assert find_nonfinite(raised(fails), None, [])[0].startswith("self.loc in __init__ (normal.py:")


def test_an_exception_that_refers_to_itself_is_looked_at_once():
    error, other = ValueError(), KeyError()
    error.__cause__, other.__cause__ = other, error
    assert find_nonfinite(error, None, []) == ()


def test_arrays_and_what_an_object_of_the_step_holds_are_seen():
    def arrays():
        values = torch.tensor([1.0, math.nan]).numpy()
        raise ValueError(values.shape)

    def objects():
        latent = torch.distributions.Normal(torch.tensor(math.nan), 1.0, validate_args=False)
        raise ValueError(type(latent))

    assert find_nonfinite(raised(arrays), None, [])[0].startswith("values in arrays")
    assert find_nonfinite(raised(objects), None, [])[0].startswith("latent.loc in objects")


def test_what_a_module_has_kept_of_an_earlier_step_tells_nothing():
    module = torch.nn.Linear(1, 1)
    module.last_loss = torch.tensor(math.nan)  # of a step before

    def step(self):
        raise ValueError("own")

    assert find_nonfinite(raised(lambda: step(module)), None, []) == ()


def test_a_model_of_many_tensors_leaves_room_for_a_look_at_the_variables():
    def step():
        hidden = torch.tensor(math.nan)
        raise ValueError(hidden.shape)

    weights = [(f"the weight '{index}'", torch.ones(1)) for index in range(3000)]
    assert find_nonfinite(raised(step), None, weights)[0].startswith("hidden in step")
