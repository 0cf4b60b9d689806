"""Loops of one's own: the examples run, and the plain one where lightning cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, NormClip
from tests.forked import run_script

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"

# Runs a script in each precision as if lightning were not installed.
WITHOUT_LIGHTNING = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
script, *precisions = sys.argv[1:]
for precision in precisions:
    sys.argv = [script, "--precision", precision]
    runpy.run_path(script, run_name="__main__")
"""


def run_without_lightning(script: str, *precisions: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_LIGHTNING, str(QUICKSTART / script), *precisions]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_plain_loop_runs_where_lightning_cannot_be_imported() -> None:
    done = run_without_lightning("plain_loop.py", "32", "16-mixed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights are finite: True") == 2


def test_what_stands_in_for_a_missing_lightning_does_refuse_it() -> None:
    done = run_without_lightning("fabric_loop.py", "32-true")
    assert done.returncode != 0 and "No module named 'lightning'" in done.stderr


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_the_fabric_loop_runs(precision: str, tmp_path: Path) -> None:
    done = run_script(QUICKSTART / "fabric_loop.py", "--precision", precision, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights are finite: True" in done.stdout


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_exactly_once(fused: bool) -> None:
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pipeline = GradientPipeline(net, optimizer, clip=NormClip(1e9))
    scaler.scale(net(torch.ones(8, 4)).square().mean()).backward()
    scaled = float(net.weight.grad.norm())
    pipeline.before_step(scaler=scaler)
    assert float(net.weight.grad.norm()) == pytest.approx(scaled / 2.0**10)
    assert pipeline.optimizers.unscale_once_(scaler)  # already done: nothing changes
    assert float(net.weight.grad.norm()) == pytest.approx(scaled / 2.0**10)
    scaler.step(optimizer)
    scaler.update()
