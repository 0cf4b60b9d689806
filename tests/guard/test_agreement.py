"""Two processes, one of which meets the fault: both do the same, and weights stay the same on both."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lightning_gradguard import NonFiniteGradientError, NonFiniteGuard
from lightning_gradguard.incident.replay import replay
from lightning_gradguard.spikes import SpikeRule
from tests.guard.models import Norms, Numbered, fill
from tests.modes.processes import failures, run_together

BAD_RANK = 1


class OneRank(Norms):
    """Only ``BAD_RANK`` meets the fault; statistics stay local, as in DDP without ``broadcast_buffers``."""

    def training_step(self, batch, batch_idx):
        if dist.is_initialized() and dist.get_rank() != BAD_RANK:
            return Norms.training_step(_without_faults(self), batch, batch_idx)
        return super().training_step(batch, batch_idx)


def _without_faults(module: OneRank) -> OneRank:
    module.spoil = {}
    return module


def huge_row(x: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(x)).view(-1, 1) == 0, 3e25, x)


def fit(folder: str, guard: NonFiniteGuard, module: pl.LightningModule, num_batches: int = 8, **options: Any) -> Any:
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, num_nodes=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[guard],
        strategy=DDPStrategy(process_group_backend="gloo", broadcast_buffers=False), use_distributed_sampler=False,
        log_every_n_steps=1,
        **options,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(module, DataLoader(Numbered(num_batches, 4), batch_size=4))
    return trainer


def outcome(guard: NonFiniteGuard, module: pl.LightningModule) -> dict[str, Any]:
    """What a rank returns: verdicts, and its weights as plain numbers."""
    assert all(bool(value.isfinite().all()) for value in [*module.parameters(), *module.buffers()])
    return {
        "verdicts": [record.verdict for record in guard.records],
        "causes": [record.cause for record in guard.records],
        "weights": [parameter.detach().flatten().tolist() for parameter in module.parameters()],
    }


def both(folder: str, bad: tuple[int, ...], action: str, spoil: Any = None, **settings: Any) -> dict[str, Any]:
    options = settings.pop("options", {})
    guard = NonFiniteGuard(action, **settings)
    torch.manual_seed(0)
    module = OneRank(dict.fromkeys(bad, spoil or fill(math.nan)))
    fit(folder, guard, module, **options)
    return outcome(guard, module)


def raises(folder: str, action: str, patience: int, bad: tuple[int, ...]) -> dict[str, Any]:
    guard = NonFiniteGuard(action, patience=patience)
    torch.manual_seed(0)
    module = OneRank(dict.fromkeys(bad, fill(math.nan)))
    try:
        fit(folder, guard, module)
    except NonFiniteGradientError as error:
        return {**outcome(guard, module), "error": str(error)}
    raise AssertionError("no error")


class LossOnly(OneRank):
    """A loss that is far off on one rank, with ordinary gradients."""

    def training_step(self, batch, batch_idx):
        loss = Norms.training_step(self, batch, batch_idx)
        return loss + (1e6 if batch_idx == 12 and dist.get_rank() == BAD_RANK else 0.0)


def loss_spike(folder: str) -> dict[str, Any]:
    guard = NonFiniteGuard(spikes=SpikeRule(warmup=8))
    torch.manual_seed(0)
    module = LossOnly()
    fit(folder, guard, module, num_batches=16)
    return outcome(guard, module)


def incident(folder: str) -> dict[str, Any]:
    found = both(folder, (3,), "skip", incident_dir=os.path.join(folder, "incidents"))
    return {**found, "bundles": sorted(os.listdir(os.path.join(folder, "incidents")))}


CHECKS: dict[str, Callable[[str], Any]] = {
    "skip": functools.partial(both, bad=(3,), action="skip"),
    "skip, accumulated": functools.partial(
        both, bad=(3,), action="skip", options={"accumulate_grad_batches": 2}
    ),
    "rollback": functools.partial(both, bad=(3, 4), action="rollback", rollback_after=2),
    "stop": functools.partial(both, bad=(3,), action="stop"),
    "raise": functools.partial(raises, bad=(3,), action="raise", patience=20),
    "patience": functools.partial(raises, bad=(3, 4, 5), action="skip", patience=3),
    "buffers": functools.partial(both, bad=(3,), action="skip", spoil=huge_row),
    "loss spike": loss_spike,
    "incident": incident,
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return folder, run_together(2, CHECKS, str(folder))


EXPECTED = {
    "skip": ["ok"] * 3 + ["skipped"] + ["ok"] * 4,
    "skip, accumulated": ["ok", "skipped", "ok", "ok"],
    "rollback": ["ok"] * 3 + ["skipped", "rolled_back"] + ["ok"] * 3,
    "stop": ["ok"] * 3 + ["skipped"],
    "raise": ["ok"] * 3 + ["skipped"],
    "patience": ["ok"] * 3 + ["skipped"] * 3,
    "buffers": ["ok"] * 3 + ["skipped"] + ["ok"] * 4,
    "loss spike": ["ok"] * 12 + ["skipped"] + ["ok"] * 3,
    "incident": ["ok"] * 3 + ["skipped"] + ["ok"] * 4,
}


@pytest.mark.parametrize("name", CHECKS)
def test_both_processes_do_the_same_and_keep_the_same_weights(results, name):
    found = results[1][name]
    assert not failures(found), failures(found)
    first, second = found
    assert first["verdicts"] == second["verdicts"] == EXPECTED[name]
    assert first["causes"] == second["causes"]
    assert first["weights"] == second["weights"]
    if "error" in first:
        assert first["error"].split(".")[0] == second["error"].split(".")[0]


def test_the_process_that_met_the_fault_saves_it_and_the_other_does_not(results):
    folder, found = results
    assert found["incident"][0]["bundles"] == [f"step-000003-opt0-rank{BAD_RANK}"]
    bundle = folder / "incident" / "incidents" / f"step-000003-opt0-rank{BAD_RANK}"
    report = replay(bundle, OneRank({3: fill(math.nan)}))
    assert report.reproduced
    assert report.exact is None  # gradients were averaged over processes
    assert report.localisation is not None
    assert report.localisation.module == ""


def test_a_loss_spike_on_one_process_is_agreed_upon(results):
    assert results[1]["loss spike"][0]["causes"][12] == "spike"
    assert results[1]["buffers"][0]["causes"][3] == "buffer"
