"""Every example in the diagnosis and the probes runs, and every rule shows a record before and after."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lightning_gradguard.diagnose
import lightning_gradguard.probes
from lightning_gradguard.diagnose import default_rules

MODULES = [
    found.name
    for package in (lightning_gradguard.diagnose, lightning_gradguard.probes)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", MODULES)
def test_its_examples_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module)
    assert results.failed == 0


@pytest.mark.parametrize("rule", default_rules(), ids=lambda rule: rule.id)
def test_a_rule_shows_a_record_that_it_passes_and_one_of_which_it_speaks(rule):
    example = type(rule).__doc__ or ""
    assert "quiet_record(" in example
    assert "None" in example or "True" in example
