"""What the tensors of a batch look like."""

import pytest
import torch

from lightning_gradguard.probes.batch import BatchProbe


def look(batch):
    probe = BatchProbe()
    probe.look(batch)
    return {stats.name: stats for stats in probe.take() or ()}


def test_tensors_are_found_and_named_wherever_they_are():
    batch = {"image": torch.ones(2, 3), "more": [torch.zeros(2), ("text", torch.tensor([1, 2]))]}
    assert list(look(batch)) == ["image", "more.0", "more.1.1"]
    assert not look(batch)["more.1.1"].floating
    assert list(look(torch.ones(2))) == ["batch"]
    assert look("text") == {}


def test_scale_spread_and_sameness():
    stats = look(torch.randn(500, 3) * torch.tensor([1.0, 1.0, 1000.0]))["batch"]
    assert stats.spread == pytest.approx(1000, rel=0.2)
    assert stats.varies
    same = look(torch.randn(1, 4).expand(8, 4))["batch"]
    assert not same.varies
