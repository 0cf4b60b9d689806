import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout, clean_name


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("net.0.weight", "net.0.weight"),
        ("net._orig_mod.0.weight", "net.0.weight"),
        ("_forward_module.net.0._fsdp_wrapped_module.weight", "net.0.weight"),
        ("net._checkpoint_wrapped_module.bias", "net.bias"),
    ],
)
def test_wrappers_leave_no_trace_in_names(name, clean):
    assert clean_name(name) == clean


def test_weight_and_bias_share_a_layer_and_order_is_the_modules_not_the_optimizers():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    layout = Layout.from_optimizer(net, sgd(reversed(list(net.parameters()))))
    assert layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert layout.layers == ("0", "2")
    assert layout.layer_of == (0, 0, 1, 1)


def test_parameters_can_be_shown_apart():
    net = nn.Linear(2, 3)
    assert Layout.from_optimizer(net, sgd(net.parameters()), group_by="parameter").layers == ("weight", "bias")


def test_an_unknown_grouping_is_refused_by_name():
    net = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="group_by must be 'layer' or 'parameter', got 'block'"):
        Layout.from_optimizer(net, sgd(net.parameters()), group_by="block")


def test_a_parameter_of_the_root_module_is_its_own_layer():
    net = nn.Module()
    net.scale = nn.Parameter(torch.ones(1))
    assert Layout.from_optimizer(net, sgd([net.scale])).layers == ("scale",)


def test_tied_parameters_have_one_entry_and_missing_ones_none():
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    layout = Layout.from_optimizer(net, sgd(net["a"].parameters()))
    assert layout.names == ("a.weight",)


def test_a_parameter_that_the_module_does_not_hold_is_named_by_its_place():
    stranger = nn.Parameter(torch.ones(2))
    assert Layout.from_optimizer(nn.Linear(1, 1), sgd([stranger])).names == ("unnamed.0.0",)


def test_groups_are_known_by_name_or_index():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = sgd([{"params": net[1].parameters(), "name": "head"}, {"params": net[0].parameters()}])
    layout = Layout.from_optimizer(net, optimizer)
    assert layout.group_names == ("head", "1")
    assert layout.group_of == (1, 1, 0, 0)


def test_a_layout_notices_that_parameters_were_added():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = sgd(net[1].parameters())
    layout = Layout.from_optimizer(net, optimizer)
    assert layout.fits([optimizer])
    optimizer.add_param_group({"params": net[0].parameters()})
    assert not layout.fits([optimizer])


def test_a_subset_keeps_names_layers_and_groups():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    subset = Layout.from_optimizer(net, sgd(net.parameters())).subset([2, 3])
    assert (subset.names, subset.layers, subset.layer_of) == (("1.weight", "1.bias"), ("1",), (0, 0))


def test_each_parameter_knows_the_module_it_belongs_to():
    net = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(2, 2, 3)))
    stranger = nn.Parameter(torch.ones(2))
    layout = Layout.from_optimizer(net, sgd([*net.parameters(), stranger]))
    owners = dict(zip(layout.names, layout.owners, strict=True))
    assert owners["0.weight"] is net[0]
    assert owners["1.parametrizations.weight.original1"] is net[1]
    assert owners["unnamed.0.5"] is None
    assert layout.subset([1, 5]).owners == (net[0], None)


def test_an_index_tensor_is_made_once():
    net = nn.Linear(2, 2)
    layout = Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    index = layout.index([1, 0], torch.device("cpu"))
    assert index.tolist() == [1, 0]
    assert layout.index((1, 0), torch.device("cpu")) is index
    assert layout.index((0, 1), torch.device("cpu")) is not index
