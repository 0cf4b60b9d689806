"""Every way to call a recurrent module is measured as autograd has it, or left out; none ends a training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradguard.probes.over_time import norms_over_time
from lightning_gradguard.probes.recurrence import TemporalProbe


class Scaled(nn.LSTM):
    def forward(self, x, hx=None, *, scale=1.0):
        out, state = super().forward(x, hx)
        return out * scale, state


class OnlyOutput(nn.GRU):
    def forward(self, x, hx=None):
        return super().forward(x, hx)[0]


class WithLengths(nn.LSTM):
    def forward(self, x, lengths, hx=None):
        out, state = super().forward(x, hx)
        return out, state, lengths


class Backwards(nn.GRU):
    def forward(self, x):
        return super().forward(x.flip(1))


class Anything(nn.GRU):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class OtherCell(nn.RNNBase):
    def __init__(self):
        super().__init__("RNN_TANH", 3, 5, batch_first=True)

    def forward(self, x):
        return x, None


def state(x: Tensor, size: int = 5, layers: int = 1) -> Tensor:
    return 0.1 * torch.ones(layers, len(x), size, dtype=x.dtype)


def one_state(x: Tensor) -> Tensor:
    return torch.full((1, 5), 0.1)


MEASURED = {
    "plain": (nn.GRU(3, 5, batch_first=True), lambda m, x: m(x)),
    "time first": (nn.GRU(3, 5), lambda m, x: m(x.transpose(0, 1))),
    "states in a list": (nn.LSTM(3, 5, batch_first=True), lambda m, x: m(x, [state(x), state(x)])),
    "states in a tuple": (nn.LSTM(3, 5, batch_first=True), lambda m, x: m(x, (state(x), state(x)))),
    "state by name": (nn.GRU(3, 5, batch_first=True), lambda m, x: m(x, hx=state(x))),
    "input by name": (nn.GRU(3, 5, batch_first=True), lambda m, x: m(input=x)),
    "one sequence": (nn.LSTM(3, 5), lambda m, x: m(x[0])),
    "one sequence, states": (nn.LSTM(3, 5, batch_first=True), lambda m, x: m(x[0], (one_state(x), one_state(x)))),
    "one sequence, state": (nn.GRU(3, 5), lambda m, x: m(x[0], one_state(x))),
    "projected": (nn.LSTM(3, 5, proj_size=2, batch_first=True), lambda m, x: m(x, (state(x, 2), state(x)))),
    "deep": (nn.RNN(3, 5, 2, batch_first=True), lambda m, x: m(x, state(x, 5, 2))),
    "float64": (nn.LSTM(3, 5, batch_first=True).double(), lambda m, x: m(x.double())),
    "bfloat16": (nn.GRU(3, 5, batch_first=True).bfloat16(), lambda m, x: m(x.bfloat16())),
    "one step": (nn.GRU(3, 5, batch_first=True), lambda m, x: m(x[:, :1])),
    "gives its output only": (OnlyOutput(3, 5, batch_first=True), lambda m, x: m(x)),
    "takes lengths": (WithLengths(3, 5, batch_first=True), lambda m, x: m(x, torch.tensor([7]))),
    "takes lengths and states": (WithLengths(3, 5, batch_first=True), lambda m, x: m(x, 7, (state(x), state(x)))),
    "scaled by one": (Scaled(3, 5, batch_first=True), lambda m, x: m(x)),
    "weight norm": (
        nn.utils.parametrizations.weight_norm(nn.GRU(3, 5, batch_first=True), "weight_hh_l0"),
        lambda m, x: m(x),
    ),
    "frozen": (nn.GRU(3, 5, batch_first=True).requires_grad_(False), lambda m, x: m(x)),
}
LEFT_OUT = {
    "scaled": (Scaled(3, 5, batch_first=True), lambda m, x: m(x, scale=2.0)),
    "reads backwards": (Backwards(3, 5, batch_first=True), lambda m, x: m(x)),
    "takes anything": (Anything(3, 5, batch_first=True), lambda m, x: m(x)),
    "a recurrence of its own": (OtherCell(), lambda m, x: m(x)),
    "inference": (nn.GRU(3, 5, batch_first=True), torch.inference_mode()(lambda m, x: m(x))),
    "under vmap": (nn.GRU(3, 5, batch_first=True), lambda m, x: torch.vmap(lambda row: m(row))(x.unsqueeze(1))),
}


def probed(module, call, x):
    probe = TemporalProbe(module)
    assert probe.start(0)
    try:
        call(module, x)
    except RuntimeError as error:  # some of these do not run without the probe either
        assert "Batching rule" in str(error)
    probe.stop()
    assert not probe.part.gone
    return (probe.take() or {}).get("")


def by_autograd(module, call, x):
    """The same from the user's own call, with the graph that it makes."""
    x = x[:4].clone().requires_grad_()
    result = call(module, x)
    result = result[0] if isinstance(result, tuple) else result
    is_one = result.dim() == 2
    last = result[-1:] if is_one else result[:, -1] if module.batch_first else result[-1]
    size = module.proj_size or module.hidden_size
    direction = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(last)
    (gradient,) = torch.autograd.grad((last[:, :size] * direction).sum(), x)
    by_time = gradient[0] if is_one else gradient.transpose(0, 1).flatten(1)
    num_steps = len(result) if is_one or not module.batch_first else result.shape[1]
    return by_time.norm(dim=1)[:num_steps].tolist()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("module", "call"), MEASURED.values(), ids=MEASURED.keys())
def test_measured_as_autograd_has_it(module, call):
    x = torch.randn(6, 7, 3)
    norms = probed(module, call, x)
    is_rough = next(module.parameters()).dtype == torch.bfloat16
    assert list(norms) == pytest.approx(by_autograd(module, call, x), rel=0.02 if is_rough else 1e-4)


def test_measured_where_the_call_records_no_graph():
    net, x = nn.GRU(3, 5, batch_first=True), torch.randn(6, 7, 3)
    assert probed(net, torch.no_grad()(lambda m, x: m(x)), x) == probed(net, lambda m, x: m(x), x)


@pytest.mark.parametrize(("module", "call"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_left_out_without_a_word(module, call):
    assert probed(module, call, torch.randn(6, 7, 3)) is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_nothing_of_ours(reentrant):
    net = nn.GRU(3, 5, batch_first=True)
    x = torch.randn(6, 7, 3, requires_grad=True)
    probe = TemporalProbe(net)
    probe.start(0)
    out = checkpoint(lambda x: net(x)[0], x, use_reentrant=reentrant)
    probe.stop()
    out.sum().backward()
    assert len(probe.take()[""]) == 7


def test_a_default_dtype_or_device_of_the_users_changes_nothing():
    net, x = nn.GRU(3, 5, batch_first=True), torch.randn(6, 7, 3)
    expected = probed(net, lambda m, x: m(x), x)
    torch.set_default_dtype(torch.float64)
    try:
        assert probed(net, lambda m, x: m(x), x) == expected
        with torch.device("meta"):
            hidden = torch.zeros(1, 6, 5, device="cpu", dtype=torch.float32)
            assert probed(net, lambda m, x: m(x, hidden), x) == pytest.approx(expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_call_that_is_not_one_of_a_recurrent_module_is_left_out():
    assert norms_over_time(OtherCell(), (torch.ones(1, 2, 3),), {}, None, 4) is None
