"""What is known of layers, and that records share what does not change."""

import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.probes.structure import Structure


def structure(net, **options):
    kinds = {name: type(part).__name__ for name, part in net.named_modules()}
    return Structure(Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1), **options), kinds)


def test_sizes_kinds_and_places_are_those_of_the_modules():
    facts = structure(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))).facts({"1": 0, "0": 1})
    assert facts["layer_sizes"] == (8, 4)
    assert facts["layer_kinds"] == ("Linear", "LayerNorm")
    assert facts["depth"] == (1, 0)
    assert facts["trainable"] == (True, True)


def test_a_bias_that_is_a_layer_of_its_own_says_so():
    facts = structure(nn.Sequential(nn.Linear(3, 2)), group_by="parameter").facts({})
    assert facts["layer_kinds"] == ("Linear", "Linear.bias")
    assert facts["depth"] is None


def test_freezing_and_new_places_show_in_the_next_record_and_the_rest_is_shared():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    known = structure(net)
    first = known.facts({"0": 0})
    again = known.facts({"0": 0})
    assert all(first[key] is again[key] for key in first)
    net[0].requires_grad_(False)
    later = known.facts({"0": 0, "1": 1})
    assert later["trainable"] == (False, True)
    assert later["depth"] == (0, 1)
