"""Frozen matrices of zero beside what they keep from training, and frozen layers that nobody has trained."""

import copy

import pytest
import torch
from torch import nn

from lightning_gradguard.probes.outside import frozen_as_drawn, frozen_zeros


class Adapter(nn.Module):
    """Two factors in modules of their own, each under the adapter's name, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)


def test_a_factor_that_is_frozen_at_zero_is_found_beside_the_one_that_it_stops():
    net = nn.ModuleDict({"q": Adapter(), "v": Adapter()})
    net["q"].lora_B.requires_grad_(False)
    assert frozen_zeros(net, ["q.lora_A.default"]) == ("q.lora_B.default.weight",)
    assert frozen_zeros(net, ["v.lora_A.default"]) == (), "that one trains"
    assert frozen_zeros(net, []) == ()


def test_a_frozen_matrix_that_only_begins_with_zeros_is_no_zero():
    net = nn.ModuleDict({"q": Adapter()})
    zeros = torch.zeros(40, 2)
    zeros[-1] = 1
    net["q"].lora_B["default"] = nn.Linear(2, 40, bias=False).requires_grad_(False)
    net["q"].lora_B["default"].weight.copy_(zeros)
    assert frozen_zeros(net, ["q.lora_A.default"]) == ()


def drawn(net, flows=False):
    names = [name for name, _ in net.named_modules()]
    return frozen_as_drawn(net, {name: place for place, name in enumerate(names)}, dict.fromkeys(names, flows))


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(8, 16), nn.Linear(300, 400), nn.Conv2d(4, 8, 3), nn.Conv1d(4, 16, 3), nn.MultiheadAttention(16, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_frozen_layer_is_as_torch_draws_it_until_it_is_trained(layer):
    net = nn.ModuleDict({"frozen": layer.requires_grad_(False), "head": nn.Linear(3, 40)})
    assert drawn(net) == ("frozen",) if not isinstance(layer, nn.MultiheadAttention) else "frozen" in drawn(net)
    weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
    weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    assert "frozen" not in drawn(net), "noise of a tenth, as a little training makes, carries it over its bound"


def test_a_target_network_and_what_trains_or_has_not_run_are_left_alone():
    online = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 8))
    net = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    assert drawn(net) == (), "each of its layers has a twin that trains"
    frozen = nn.Linear(8, 16).requires_grad_(False)
    assert frozen_as_drawn(nn.ModuleDict({"idle": frozen, "head": nn.Linear(3, 40)}), {"head": 0}, {}) == ()
    assert drawn(nn.ModuleDict({"behind a prompt": frozen}), flows=True) == ()
    trained = [nn.Linear(16, 16).requires_grad_(False) for _ in range(3)]
    for layer in trained:
        layer.weight.mul_(1.5)
    assert drawn(nn.Sequential(*trained, nn.Linear(16, 9).requires_grad_(False))) == (), "the old head of a trunk"
    recurrent = nn.GRU(8, 8), nn.GRU(8, 8), nn.Embedding(9, 8)
    assert drawn(nn.Sequential(*recurrent, nn.Linear(16, 9)).requires_grad_(False)) == (), "whatever the trunk is"
    for start in (nn.init.kaiming_normal_, nn.init.orthogonal_, nn.init.xavier_uniform_):
        start(frozen.weight)
        assert drawn(nn.ModuleDict({"frozen": frozen})) == (), "a start of somebody's own: a choice"
