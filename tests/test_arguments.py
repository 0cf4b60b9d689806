import pytest

from lightning_gradguard.arguments import check_count


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
