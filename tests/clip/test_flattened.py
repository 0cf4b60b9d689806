"""Parameters that FSDP has flattened: what clips tensors or units apart says that it cannot."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_gradguard import AGC, AdaGC, Chain, GradientPipeline, MaxClip, NormClip, ValueClip, ZClip


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of this process alone."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def told(policy, *, flat):
    """What is said of three steps."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = FullyShardedDataParallel(net, use_orig_params=not flat, device_id=torch.device("cpu"))
        pipeline = GradientPipeline(model, torch.optim.SGD(model.parameters(), lr=0.1), clip=policy, rules=[])
        for _ in range(3):
            model(torch.ones(2, 4)).square().sum().backward()
            pipeline.before_step()
    return [str(warning.message) for warning in seen if "has flattened" in str(warning.message)]


APART = {
    "AGC": lambda: AGC(0.05),
    "AdaGC": AdaGC,
    "MaxClip": MaxClip,
    "in a chain": lambda: Chain([NormClip(1.0), AdaGC()]),
}


@pytest.mark.parametrize("policy", APART.values(), ids=APART)
def test_it_is_said_once_at_the_first_step(group, policy):
    (said,) = told(policy(), flat=True)
    assert "use_orig_params=True" in said


@pytest.mark.parametrize("policy", APART.values(), ids=APART)
def test_over_the_original_parameters_there_is_nothing_to_say(group, policy):
    assert told(policy(), flat=False) == []


@pytest.mark.parametrize("policy", [NormClip(0.5), ZClip(), ValueClip(0.1)], ids=lambda policy: type(policy).__name__)
def test_a_policy_for_the_whole_is_as_right_as_ever(group, policy):
    assert told(policy, flat=True) == []
