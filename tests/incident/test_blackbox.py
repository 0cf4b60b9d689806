"""Incidents that are saved by hand: of an exception that the step raised, in a loop of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.incident.bundle import IncidentFolder
from lightning_gradguard.incident.replay import replay


def step(module: nn.Module, batch: Tensor) -> Tensor:
    """Refuses what is not finite, as distributions and losses of many libraries do."""
    logits = module(batch).log()
    if not bool(logits.isfinite().all()):
        raise ValueError("expected parameter logits to satisfy the constraint")
    return logits.mean()


def test_an_exception_that_the_step_raised_is_saved_and_replayed(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
    with torch.no_grad():
        net[0].weight.abs_()
    box = BlackBox(IncidentFolder(tmp_path), net, run=lambda module, batch, index: step(module, batch))
    batch = torch.full((2, 3), -1e30)
    box.before_batch(batch, 7)
    with pytest.raises(ValueError, match="constraint") as caught:
        step(net, batch)
    said = box.save(step=7, cause="exception", action="skip", error=caught.value)
    assert said is not None
    assert "aten.log.default" in said
    (bundle,) = tmp_path.iterdir()
    report = (bundle / "report.md").read_text()
    assert "The step raised **`ValueError`**: expected parameter logits" in report
    assert "There were no gradients yet" in report
    found = replay(bundle, nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), step=step)
    assert found.reproduced
    assert found.localisation.origin.call.operator == "aten.log.default"
    assert "raised ValueError" in str(found)
    fixed = replay(bundle, nn.Sequential(nn.Linear(3, 2), nn.Softplus()), step=lambda m, b: (m(b) + 1.0).log().mean())
    assert not fixed.reproduced


def test_a_batch_that_cannot_be_walked_does_not_end_a_step(tmp_path):
    class Hostile:
        def __getattribute__(self, name: str):
            raise KeyError(name)

    box = BlackBox(IncidentFolder(tmp_path), nn.Linear(1, 1))
    box.before_batch(Hostile())
