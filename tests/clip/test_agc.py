from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.agc_units import units_of
from lightning_gradguard.clip.apply import apply_
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import measure
from tests import reference

ALL = slice(None)
WHOLE = [(ALL,)]


class Conv1D(nn.Module):
    """GPT-2's linear layer as Hugging Face writes it: weight [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))


def rows(num: int) -> list[tuple]:
    return [(i,) for i in range(num)]


def columns(num: int) -> list[tuple]:
    return [(ALL, i) for i in range(num)]


# module, and for each of its parameters the index of every unit
UNITS = {
    "linear": (lambda: nn.Linear(3, 5), {"weight": rows(5), "bias": WHOLE}),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), {"weight": rows(6), "bias": WHOLE}),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), {"weight": rows(6), "bias": WHOLE}),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), {"weight": rows(3), "bias": WHOLE}),
    "transposed-1d": (lambda: nn.ConvTranspose1d(4, 6, 3), {"weight": columns(6), "bias": WHOLE}),
    "transposed-2d": (lambda: nn.ConvTranspose2d(4, 6, 3), {"weight": columns(6), "bias": WHOLE}),
    "transposed-3d": (lambda: nn.ConvTranspose3d(2, 3, 2), {"weight": columns(3), "bias": WHOLE}),
    "transposed-groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        {"weight": [(slice(0, 2), i) for i in range(3)] + [(slice(2, 4), i) for i in range(3)], "bias": WHOLE},
    ),
    "embedding": (lambda: nn.Embedding(7, 3), {"weight": rows(7)}),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {
            "in_proj_weight": rows(12),
            "in_proj_bias": WHOLE,
            "bias_k": WHOLE,
            "bias_v": WHOLE,
            "out_proj.weight": rows(4),
            "out_proj.bias": WHOLE,
        },
    ),
    "lstm": (
        lambda: nn.LSTM(3, 2),
        {"weight_ih_l0": rows(8), "weight_hh_l0": rows(8), "bias_ih_l0": WHOLE, "bias_hh_l0": WHOLE},
    ),
    "layer-norm-2d": (lambda: nn.LayerNorm((3, 4)), {"weight": WHOLE, "bias": WHOLE}),
    "hugging-face-conv1d": (Conv1D, {"weight": columns(5), "bias": WHOLE}),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 3, bias=False)),
        {"parametrizations.weight.original0": columns(1), "parametrizations.weight.original1": columns(6)},
    ),
}


def clip(module: nn.Module, policy: AGC) -> list[Tensor]:
    layout = Layout.from_optimizer(module, torch.optim.SGD(module.parameters(), lr=0.1))
    with torch.no_grad():
        measurement = measure(layout)
        apply_(measurement, policy.decide(measurement, {}))
    return [parameter.grad for parameter in layout.params]


@pytest.mark.parametrize(("make", "units"), UNITS.values(), ids=UNITS)
def test_units_lie_along_the_axis_of_the_outputs(make, units) -> None:
    module = make()
    assert [name for name, _ in module.named_parameters()] == list(units)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) * 10.0 ** torch.randint(-4, 1, parameter.shape)
    grads = [parameter.grad.double() for parameter in module.parameters()]
    weights = [parameter.detach().double() for parameter in module.parameters()]
    expected = reference.agc(grads, weights, list(units.values()))
    for got, twin in zip(clip(module, AGC()), expected, strict=True):
        assert torch.allclose(got.double(), twin, rtol=1e-5)


def test_the_axis_matters() -> None:
    module = nn.ConvTranspose1d(4, 6, 3)
    layout = Layout.from_optimizer(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert units_of(layout)[0] != units_of(replace_owner(layout))[0]


def replace_owner(layout: Layout) -> Layout:
    module = nn.Conv1d(6, 4, 3)
    module.weight = layout.params[0]
    return Layout.from_optimizer(module, torch.optim.SGD([module.weight], lr=0.1))


@pytest.mark.parametrize("num_equal", [1, 5, 40])
def test_stacked_and_single_layers_give_the_same(num_equal: int) -> None:
    net = nn.Sequential(*[nn.Linear(6, 6) for _ in range(num_equal)], nn.Linear(6, 400))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand(()) * 0.1
    alone = [parameter.grad.clone() for parameter in net.parameters()]
    together = clip(net, AGC())
    for layer in net:
        for parameter in layer.parameters():
            parameter.grad = alone.pop(0)
    apart = [grad for layer in net for grad in clip(layer, AGC())]
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_zero_initialized_weights_train() -> None:
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(5):
        layer.weight.grad = torch.ones(2, 2)
        clip(layer, AGC())
        optimizer.step()
    assert float(layer.weight.detach().norm()) > 1e-4


def test_excluded_parameters_are_left_alone_by_name() -> None:
    net = nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip(net, AGC(exclude=["head.*"]))
    assert (net["head"].weight.grad == 1.0).all()
    assert (net["body"].weight.grad < 1.0).all()


def test_a_missing_gradient_among_equal_layers_is_left_out() -> None:
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    net[2].weight.grad = net[3].bias.grad = None
    left = clip(net, AGC())
    assert [grad is None for grad in left] == [i in (4, 7) for i in range(10)]
    assert all((grad < 1.0).all() for grad in left if grad is not None)


def test_sparse_rows_are_clipped_against_their_own_weights() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    dense = nn.Embedding(5, 3, _weight=table.weight.detach().clone())
    for module in (table, dense):
        (module(torch.tensor([1, 1, 4])) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    (sparse,), (full,) = clip(table, AGC()), clip(dense, AGC())
    assert sparse.is_sparse
    assert torch.allclose(sparse.to_dense(), full)


def test_a_nan_in_one_unit_leaves_the_others_clipped() -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.grad = torch.ones(2, 3)
    layer.weight.grad[0, 1] = math.nan
    (left,) = clip(layer, AGC())
    assert (left[1] < 1.0).all()


def test_it_warns_once_where_it_can_do_nothing() -> None:
    layer = nn.Linear(2, 2)
    layout = Layout.from_optimizer(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match=r"AGC clips nothing: exclude=\['weight', 'b\*'\] covers every parameter"):
        AGC(exclude=["weight", "b*"]).check(layout)
    with pytest.warns(UserWarning, match=r"exclude=\['head.\*'\] matches no parameter .* called 'weight'"):
        AGC(exclude=["head.*", "bias"]).check(layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AGC(exclude=["bias"]).check(layout)
