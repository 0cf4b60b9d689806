"""The lists of laws and twins, and the page, hold every public policy: whatever was forgotten is named here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, final

import pytest

import lightning_gradguard
import lightning_gradguard.clip
from lightning_gradguard.clip.base import ClipPolicy
from tests.clip.policies import ALL, TWINS
from tests.clip.test_docs import PAGE

LAWS = Path(__file__).with_name("test_laws.py").read_text(encoding="utf-8")
UNDER_LAWS = [make() for make in ALL.values()]
WITH_TWIN = [make() for make, make_twin in TWINS.values() if type(make_twin()).__module__ == "tests.reference"]


def public() -> list[type[ClipPolicy]]:
    names = [getattr(lightning_gradguard, name) for name in lightning_gradguard.__all__]
    return [value for value in names if is_policy(value) and value is not ClipPolicy]


def shipped() -> set[type[ClipPolicy]]:
    modules = pkgutil.iter_modules(lightning_gradguard.clip.__path__, "lightning_gradguard.clip.")
    return {
        value
        for module in modules
        for value in vars(importlib.import_module(module.name)).values()
        if is_policy(value) and not inspect.isabstract(value)
    }


def is_policy(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ClipPolicy)


def what_is_missing(policy: type[ClipPolicy]) -> list[str]:
    """What has to be written yet for a policy, in words."""
    name = policy.__name__
    kept = {
        f"{name} in ALL of tests/clip/policies.py": any(type(each) is policy for each in UNDER_LAWS),
        f"{name} with its twin of tests/reference.py in TWINS of tests/clip/policies.py": any(
            type(each) is policy for each in WITH_TWIN
        ),
        f"an entry '### {name}' in docs/clipping.md": f"\n### {name}\n" in PAGE,
        f"an example in the docstring of {name}": ">>> " in (policy.__doc__ or ""),
    }
    missing = [what for what, found in kept.items() if not found]
    return missing + [
        f"{name}({argument}={choice!r}) in {where} of tests/clip/policies.py"
        for argument, choices in choices_of(policy).items()
        for where, policies in (("ALL", UNDER_LAWS), ("TWINS", WITH_TWIN))
        for choice in never_chosen(policy, argument, choices, policies)
    ]


def choices_of(policy: type[ClipPolicy]) -> Mapping[str, Iterable[object]]:
    """The arguments of a policy that switch between a few ways to work, each with what it may be."""
    hints = typing.get_type_hints(policy.__init__)
    choices = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
    return choices | {name: (False, True) for name, hint in hints.items() if hint is bool}


def never_chosen(
    policy: type[ClipPolicy], argument: str, choices: Iterable[object], policies: Iterable[ClipPolicy]
) -> list[object]:
    chosen = [getattr(each, argument, None) for each in policies if type(each) is policy]
    return [choice for choice in choices if choice not in chosen]


@pytest.mark.parametrize("policy", public(), ids=lambda policy: policy.__name__)
def test_nothing_was_forgotten_of_a_public_policy(policy: type[ClipPolicy]) -> None:
    assert what_is_missing(policy) == []


def test_every_policy_of_the_package_is_public() -> None:
    assert shipped() == set(public())


def test_the_laws_run_over_the_whole_list() -> None:
    assert 'every = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())' in LAWS


def test_a_policy_in_none_of_the_lists_is_told_all_that_is_missing() -> None:
    @final
    class Doubling(ClipPolicy):
        """Doubles every gradient."""

        def __init__(self, by: Literal["norm", "value"] = "norm", original: bool = False) -> None:
            self.by, self.original = by, original

        def init_state(self, layout: Any, device: Any) -> Any:
            return {}

        def decide(self, measurement: Any, state: Any) -> Any:
            raise AssertionError("it is never asked")

    missing = what_is_missing(Doubling)
    assert len(missing) == 4 + 2 * 4
    assert all("Doubling" in what for what in missing)
    assert "Doubling in ALL of tests/clip/policies.py" in missing
    assert "Doubling(by='value') in TWINS of tests/clip/policies.py" in missing
