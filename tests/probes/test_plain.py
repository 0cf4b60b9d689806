"""Probes look at ordinary tensors of real numbers, and pass over everything else without harm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.probes.plain import plain_values
from lightning_gradguard.probes.probes import Instruments


class Named(Tensor):
    """A subclass that only renames, as image types do."""


class Wrapped(Tensor):
    """A subclass that stands for another tensor."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


X = torch.ones(3, 5, 4)
LOOKED_AT = {
    "float32": lambda x: x,
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "no dimension": lambda x: x.sum(),
    "one dimension": lambda x: x.flatten(),
    "not contiguous": lambda x: x.transpose(0, 2),
    "channels last": lambda x: x.view(1, 3, 5, 4).to(memory_format=torch.channels_last),
    "a parameter": lambda x: nn.Parameter(x),
    "a renamed class": lambda x: x.as_subclass(Named),
    "the first of several": lambda x: (x, None),
}
PASSED_OVER = {
    "integers": lambda x: x.long(),
    "booleans": lambda x: x > 0,
    "complex": lambda x: torch.complex(x, x),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: x[0].to_sparse_csr(),
    "nested": lambda x: torch.nested.as_nested_tensor([x[0], x[0][:2]]),
    "jagged": lambda x: torch.nested.nested_tensor([x[0], x[0][:2]], layout=torch.jagged),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "meta": lambda x: x.to("meta"),
    "empty": lambda x: x[:0],
    "a wrapper": Wrapped,
    "a dict": lambda x: {"x": x},
    "a list": lambda x: [x],
    "nothing": lambda x: None,
    "an empty tuple": lambda x: (),
}


class Odd(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.make = make

    def forward(self, x):
        return self.make(x)


def activations(net, x):
    instruments = Instruments(net)
    instruments.before_forward(0)
    net(x)
    instruments.after_forward()
    found = instruments.probe.part.run(instruments.probe.take)
    assert not instruments.probe.part.gone
    return found


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse CSR|quant).*")
@pytest.mark.parametrize("make", LOOKED_AT.values(), ids=LOOKED_AT.keys())
def test_looked_at(make):
    (stats,) = activations(Odd(make), X)
    value = 60.0 if stats.max_abs > 1 else 1.0
    assert (stats.rms, stats.max_abs) == pytest.approx((value, value))


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse|quant).*")
@pytest.mark.parametrize("make", PASSED_OVER.values(), ids=PASSED_OVER.keys())
def test_passed_over(make):
    assert activations(Odd(make), X) is None


def test_what_a_function_transform_gives_does_not_leave_it():
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    assert activations(_Mapped(net), X) is None


class _Mapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.vmap(self.net)(x)


def test_a_parameter_that_a_module_gives_gets_no_hook_that_stays():
    net = Odd(lambda x: net.weight).half()
    for _ in range(3):
        activations(net, X)
    assert not net.weight._backward_hooks


def test_the_memory_of_dead_units_does_not_share_the_users_memory():
    net = nn.ReLU()
    instruments = Instruments(net)
    instruments.before_forward(0)
    net(torch.ones(4)).zero_()
    instruments.after_forward()
    assert instruments.probe._highest[""].tolist() == [1.0] * 4


def test_values_of_several_dtypes_are_told_together():
    net = nn.Sequential(nn.Linear(4, 4), Odd(lambda x: x.double() * 1e100))
    first, second = activations(net, torch.ones(1, 4))
    assert first.rms < 10
    assert second.rms > 1e90
    assert plain_values(torch.ones(1)).dtype == torch.float32
