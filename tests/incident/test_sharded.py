"""Incidents of models that are spread over processes: one bundle, and a replay in one process with whole tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from lightning_gradguard import NonFiniteGuard
from lightning_gradguard.incident.command import main
from lightning_gradguard.incident.read import read_bundle
from lightning_gradguard.incident.replay import replay
from tests.modes.modes import fsdp, model_parallel, quiet_trainer
from tests.modes.processes import failures, run_together

BAD = 2


class Sharded(pl.LightningModule):
    """A net that ``configure_model`` spreads over processes without asking how many there are; one buffer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4))
        self.register_buffer("scale", torch.tensor(2.0))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean() * self.scale

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class RootedBackward(Sharded):
    """Loss and batch are finite everywhere; the slope of the root is not, where a batch is all zero."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        outputs = self.net(batch)
        return outputs.square().mean() + (outputs * batch.abs().sum()).square().sum().sqrt()


class ByRows(Sharded):
    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class ByTensor(Sharded):
    def configure_model(self) -> None:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


class ByBoth(Sharded):
    def configure_model(self) -> None:
        mesh = self.device_mesh
        parallelize_module(self.net, mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(self.net, mesh=mesh["data_parallel"])


def train(
    folder: str,
    make: Callable[[], Any],
    options: Callable[[], Any],
    value: float = float("nan"),
    max_bytes: int = 2**30,
) -> list[str]:
    """Trains on every process; the batch of the last one (those, where several share a batch) is spoiled."""
    tensor = 2 if make in (ByTensor, ByBoth) else 1
    column = dist.get_rank() // tensor
    torch.manual_seed(column)
    spoiled = column == dist.get_world_size() // tensor - 1
    data = [torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * column + i)) for i in range(4)]
    if spoiled:
        data[BAD][5 if value != 0 else slice(None)] = value
    guard = NonFiniteGuard("skip", incident_dir=f"{folder}/incidents", max_bytes=max_bytes)
    trainer = quiet_trainer(folder, [guard], **options())
    trainer.fit(make(), DataLoader(data, batch_size=None))
    dist.barrier()
    return sorted(path.name for path in Path(folder, "incidents").iterdir())


CHECKS = {
    2: {
        "fsdp1": partial(train, make=Sharded, options=fsdp),
        "fsdp2": partial(train, make=ByRows, options=partial(model_parallel, 1)),
        "tp": partial(train, make=ByTensor, options=partial(model_parallel, 2)),
        "too large": partial(train, make=ByRows, options=partial(model_parallel, 1), max_bytes=3000),
        "backward": partial(train, make=RootedBackward, options=fsdp, value=0.0),
    },
    4: {"2d": partial(train, make=ByBoth, options=partial(model_parallel, 2))},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The one bundle of each check."""
    found = {}
    for processes, checks in CHECKS.items():
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        for name, answers in run_together(processes, checks, str(folder)).items():
            assert not failures(answers), failures(answers)
            assert answers == [["step-000002-opt0"]] * processes, (name, answers)
            found[name] = folder / name / "incidents" / "step-000002-opt0"
    return found


MODULES = {"fsdp1": Sharded, "fsdp2": ByRows, "tp": ByTensor, "2d": ByBoth}


@pytest.mark.parametrize("mode", MODULES)
def test_it_is_replayed_in_one_process_with_whole_tensors(bundles: dict[str, Path], mode: str) -> None:
    module = MODULES[mode]()
    found = replay(bundles[mode], module, samples=True)
    assert (found.reproduced, found.exact, found.localisation.phase) == (True, None, "batch")
    assert not dist.is_initialized()
    assert all(type(parameter) is nn.Parameter for parameter in module.parameters())
    assert [sample.index for sample in found.samples.samples] == [5]
    assert len(found.expected) == len(list(module.parameters()))


@pytest.mark.parametrize("mode", MODULES)
def test_the_batch_is_that_of_the_process_that_saw_it(bundles: dict[str, Path], mode: str) -> None:
    (micro,) = read_bundle(bundles[mode]).batches
    assert bool(micro.batch.isnan().any())
    assert micro.process == {"fsdp1": 1, "fsdp2": 1, "tp": 0, "2d": 2}[mode]


def test_where_nobody_saw_it_each_process_gives_its_batch_and_the_replay_finds_the_one(bundles: Any) -> None:
    bundle = read_bundle(bundles["backward"])
    assert [micro.process for micro in bundle.batches] == [0, 1]
    found = replay(bundles["backward"], RootedBackward())
    assert found.reproduced
    assert found.localisation.origin.call.node == "SqrtBackward0"


def test_weights_that_would_pass_max_bytes_leave_the_report_which_says_so(bundles: Any, capsys: Any) -> None:
    bundle = bundles["too large"]
    assert "cannot be replayed" in (bundle / "report.md").read_text()
    assert "python -m lightning_gradguard replay" not in (bundle / "report.md").read_text()
    assert json.loads((bundle / "report.json").read_text())["left_out"]
    assert main([str(bundle), "--module", f"{__name__}:ByRows"]) == 2
    assert "larger max_bytes" in capsys.readouterr().err
