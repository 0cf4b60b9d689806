"""The benchmarks run, small; their figures are measured where they are of use, and kept under benchmarks/results."""

import gc
import sys
import tracemalloc

import pytest
import torch
from torch import nn

from benchmarks import gpu, growth, machine, readme, small_models
from benchmarks.overhead import CLIPPING, added
from benchmarks.rotation import Step
from lightning_gradguard import GradientPipeline, NormClip
from lightning_gradguard.measurement.layout import Layout


def test_the_script_for_gpus_runs_where_there_is_none(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gpu.main(["--device", "cpu", "--models", "tiny", "--repeats", "2"])
    assert (tmp_path / "runs" / "benchmarks" / "gpu.md").exists()
    assert "everything on, every step clipped" in capsys.readouterr().out


def test_growth_draws_what_it_measures(tmp_path):
    results = {
        "machine": machine.describe(),
        "starting": {"import of the package": 1.0},
        "steps": growth.by_steps(20, samples=2),
        "tensors": growth.by_tensors([10, 20]),
        "parameters": growth.by_parameters([1000]),
        "logging": growth.by_logging([5], records=2),
        "reading": growth.by_reading([5]),
    }
    growth.draw(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert "flow tensor" in growth.page(results)


def test_a_cost_is_compared_with_the_clipping_beside_it():
    steps = [
        Step("ours", 0.005, 1.004),
        Step(CLIPPING, 0.009, 1.009),
        Step("ours", 0.009, 1.0),
        Step(CLIPPING, 0.017, 1.017),
        Step("nothing", 0.001, 1.0),
    ]
    table = added(steps, [CLIPPING, "nothing", "ours"])
    assert table["ours"]["clippings"][0] == pytest.approx((4 / 8 + 8 / 12) / 2)
    assert table["nothing"]["clippings"][0] == 0.0
    assert table[CLIPPING]["step"][0] > 1.008


def calls_for_a_layout(num_layers):
    """Calls of functions, ours and Python's, while a layout is read: some 0.1 µs each."""
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(num_layers)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event in ("call", "c_call") else None)
    try:
        Layout.from_optimizer(net, optimizer)
    finally:
        sys.setprofile(None)
    return len(calls)


def test_a_layout_costs_the_same_for_each_of_a_thousand_layers_as_for_each_of_ten():
    assert calls_for_a_layout(1000) <= 100 * calls_for_a_layout(10)
    assert calls_for_a_layout(1000) / 1000 < 150


def test_memory_does_not_grow_over_quiet_steps():
    net = nn.Linear(8, 8)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    pipeline = GradientPipeline(
        net, torch.optim.SGD(net.parameters(), lr=0.1), clip=NormClip(1.0), on_nonfinite="skip", log_every_n_steps=10**9
    )
    tracemalloc.start()
    sizes = []
    for _ in range(3):  # the first fills what Python keeps for reuse
        for _ in range(1024):  # a multiple of 32: after that many steps their norms are folded
            pipeline.before_step()
        gc.collect()
        sizes.append((tracemalloc.get_traced_memory()[0], sum(type(o) is torch.Tensor for o in gc.get_objects())))
    tracemalloc.stop()
    assert sizes[2][0] - sizes[1][0] < 10_000
    assert sizes[2][1] <= sizes[1][1]


@pytest.mark.parametrize("page", readme.SECTIONS, ids=lambda path: path.name)
def test_the_tables_of_the_pages_are_those_of_the_recorded_results(page):
    assert page.read_text() == readme.updated(page)


def test_the_script_for_small_models_compares_every_role(monkeypatch):
    monkeypatch.setattr(small_models, "LAYERS", (2,))
    page = small_models.table(rounds=1)
    assert all(f"| 2 | {role} |" in page for role in ("clip_grad_norm_", *small_models.ROLES))
