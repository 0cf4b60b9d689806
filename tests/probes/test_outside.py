"""Frozen matrices of zero beside what they keep from training."""

import torch
from torch import nn

from lightning_gradguard.probes.outside import frozen_zeros


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
