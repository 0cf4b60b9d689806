import math

import pytest

from lightning_gradguard.arguments import (
    between,
    ceiling,
    check_all,
    check_choice,
    check_count,
    check_interval,
    one_of,
    patterns,
    positive,
    quantity,
    whole,
)


@pytest.mark.parametrize("value", [1, 50])
def test_a_count_is_accepted(value):
    check_count(value, "every_n_steps")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "every_n_steps must be at least 1, got 0"),
        (True, TypeError, "every_n_steps must be an int, got bool: True"),
        (2.0, TypeError, "every_n_steps must be an int, got float: 2.0"),
        ("2", TypeError, "every_n_steps must be an int, got str: '2'"),
    ],
)
def test_all_else_is_refused_with_what_was_got(value, error, message):
    with pytest.raises(error, match=message):
        check_count(value, "every_n_steps")


GIVEN_BACK = {
    "positive": (positive("max_norm", 2, "do"), 2.0),
    "infinity": (positive("max_norm", math.inf, "do"), math.inf),
    "no ceiling": (ceiling(None), None),
    "between": (between("decay", 0, 0.0, 1.0, "do"), 0.0),
    "whole": (whole("window", 3, 1, "do"), 3),
    "count": (check_count(3, "every_n_steps"), 3),
    "no interval": (check_interval(None, "every_n_steps"), None),
    "one of two": (one_of("to", "mean", ("mean", "limit")), "mean"),
    "choice": (check_choice("layer", ("layer", "parameter"), "group_by"), "layer"),
    "quantity": (quantity("value"), "value"),
    "patterns": (patterns("exclude", ["head.*"]), ("head.*",)),
    "no patterns": (patterns("exclude", None), ()),
    "all": (check_all([1, 2], int, "numbers"), [1, 2]),
}


@pytest.mark.parametrize(("found", "right"), GIVEN_BACK.values(), ids=GIVEN_BACK)
def test_what_is_accepted_is_given_back(found, right):
    assert (found, type(found)) == (right, type(right))


REFUSED = {
    "a word": (lambda: check_choice("layers", ("layer", "parameter"), "group_by"), "one of 'layer', 'parameter', got"),
    "a word of two": (lambda: one_of("to", "median", ("mean", "limit")), "to must be 'mean' or 'limit', got 'median'"),
    "a class": (lambda: check_all([int], int, "rules"), r"rules must hold int objects, got the class int: write int\("),
    "a single one": (lambda: check_all(3, int, "rules"), "rules must be a list of int, got 3"),
    "another kind": (lambda: check_all(["3"], int, "rules"), "rules must hold int objects, got '3'"),
    "true": (lambda: whole("window", True, 1, "do"), r"window must be a whole number, got True \(bool\); do"),
    "an open end": (lambda: between("decay", 1.0, 0.0, 1.0, "do", open_ends=True), r"in \(0, 1\), got 1.0; do"),
    "nan": (lambda: positive("z", math.nan, "do"), "z must be a number, got nan; do"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_what_was_got_and_what_it_may_be(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
