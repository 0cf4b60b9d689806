import argparse
import logging
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from tensorboard.plugins.base_plugin import TBContext

from lightning_gradguard.tensorboard.loader import GradientFlowLoader


def test_tensorboard_finds_the_loader_by_its_entry_point():
    found = [point for point in entry_points(group="tensorboard_plugins") if point.name == "gradguard"]
    assert [point.value for point in found] == ["lightning_gradguard.tensorboard.loader:GradientFlowLoader"]
    assert found[0].load() is GradientFlowLoader


LOAD = """
import sys
import tensorboard.plugins.base_plugin
from lightning_gradguard.tensorboard.loader import GradientFlowLoader
print(sorted({"torch", "lightning", "lightning_gradguard.tensorboard.plugin"} & set(sys.modules)))
plugin = GradientFlowLoader().load(tensorboard.plugins.base_plugin.TBContext())
print(sorted({"torch", "lightning"} & set(sys.modules)), type(plugin).__name__)
"""


def test_loading_imports_neither_torch_nor_lightning():
    result = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    early, late = result.stdout.splitlines()
    assert early == "[]"
    assert late == "[] GradientFlowPlugin"


BROKEN = """
import sys
sys.modules["lightning_gradguard.tensorboard.plugin"] = None
from tensorboard.plugins.base_plugin import TBContext
from lightning_gradguard.tensorboard.loader import GradientFlowLoader
print(GradientFlowLoader().load(TBContext()))
"""


def test_a_plugin_that_cannot_be_imported_costs_the_tab_and_not_tensorboard():
    result = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "None"
    assert "no Gradient flow tab: ModuleNotFoundError" in result.stderr


def test_an_error_while_the_plugin_is_made_costs_the_tab_and_not_tensorboard(caplog):
    with caplog.at_level(logging.WARNING, logger="tensorboard"):
        assert GradientFlowLoader().load(object()) is None
    assert "no Gradient flow tab: AttributeError" in caplog.text
    assert GradientFlowLoader().load(TBContext()) is not None


@pytest.mark.parametrize(
    ("given", "kept"), [({}, 1000), ({"gradguard": 50}, 50), ({"images": 3}, 1000)], ids=["default", "user", "other"]
)
def test_a_thousand_columns_are_kept_unless_the_user_says_otherwise(given, kept):
    flags = argparse.Namespace(samples_per_plugin=dict(given))
    GradientFlowLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {**given, "gradguard": kept}


def test_flags_of_another_tensorboard_are_left_alone():
    flags = argparse.Namespace(samples_per_plugin=None)
    GradientFlowLoader().fix_flags(flags)
    assert flags.samples_per_plugin is None
    GradientFlowLoader().fix_flags(argparse.Namespace())
