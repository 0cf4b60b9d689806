"""What importing costs, and what it gives."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import lightning_gradguard


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_neither_torch_nor_lightning_nor_tensorboard():
    result = run(
        "import sys, lightning_gradguard;"
        "print(sorted({'torch', 'lightning', 'pytorch_lightning', 'tensorboard', 'numpy'} & set(sys.modules)))"
    )
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("name", lightning_gradguard.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is_for(name):
    value = getattr(lightning_gradguard, name)
    assert value.__doc__
    assert name in dir(lightning_gradguard)


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(AttributeError, match=r"no attribute 'GradGard'; it has .*GradGuard"):
        lightning_gradguard.GradGard  # noqa: B018


ALL_MODULES_FIRST = """
import importlib, pkgutil, types
import lightning_gradguard
for module in pkgutil.walk_packages(lightning_gradguard.__path__, "lightning_gradguard."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in lightning_gradguard.__all__:
    found = {}
    exec(f"from lightning_gradguard import {name}", found)
    home = importlib.import_module(f"lightning_gradguard.{lightning_gradguard._HOME[name]}")
    if isinstance(found[name], types.ModuleType) or found[name] is not vars(home)[name] or not callable(found[name]):
        print(name, "is", found[name])
"""


def test_every_public_name_is_itself_whatever_was_imported_before():
    result = run(ALL_MODULES_FIRST)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_no_room_and_no_module_at_the_root_bears_a_public_name():
    assert not {module.name for module in pkgutil.iter_modules(lightning_gradguard.__path__)} & set(
        lightning_gradguard.__all__
    )


def test_type_checkers_see_the_same_names_as_users():
    source = importlib.import_module("inspect").getsource(lightning_gradguard)
    for name, home in lightning_gradguard._HOME.items():
        assert f"from lightning_gradguard.{home} import {name} as {name}" in source


@pytest.mark.parametrize(
    ("argv", "status"), [([], 2), (["--help"], 0), (["fly"], 2)], ids=["nothing", "help", "unknown"]
)
def test_the_command_line_says_how_it_is_used(argv, status):
    result = subprocess.run(
        [sys.executable, "-m", "lightning_gradguard", *argv], capture_output=True, text=True, check=False
    )
    assert result.returncode == status
    assert "usage: python -m lightning_gradguard COMMAND" in result.stdout + result.stderr
