"""The temporal probe gives the gradient over time, and leaves no trace."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lightning_gradguard.diagnose.time_profile import factors
from lightning_gradguard.probes.recurrence import TemporalProbe


def look(net, *args):
    probe = TemporalProbe(net)
    assert probe.start(0)
    out = net(*args)
    probe.stop()
    return probe.take(), out


def test_a_linear_recurrence_gives_the_powers_of_its_matrix():
    net = nn.RNN(4, 4, nonlinearity="relu", bias=False, batch_first=True)
    with torch.no_grad():
        net.weight_hh_l0.copy_(0.5 * torch.eye(4))
        net.weight_ih_l0.copy_(torch.eye(4))
    (norms,) = look(net, torch.ones(3, 10, 4))[0].values()
    assert len(norms) == 10
    assert [a / b for a, b in itertools.pairwise(norms)] == pytest.approx([0.5] * 9, rel=1e-5)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("more", [{}, {"bidirectional": True}, {"num_layers": 2, "dropout": 0.5}])
def test_every_recurrent_module_is_measured_and_nothing_is_changed(kind, batch_first, more):
    net = kind(3, 5, batch_first=batch_first, **more)
    twin = copy.deepcopy(net)
    x = torch.randn(6, 12, 3) if batch_first else torch.randn(12, 6, 3)
    torch.manual_seed(1)
    seen, (out, _) = look(net, x)
    after = torch.rand(1)
    out.sum().backward()
    torch.manual_seed(1)
    plain, _ = twin(x)
    assert torch.equal(after, torch.rand(1)), "the probe draws no random number of the user's"
    plain.sum().backward()
    assert torch.equal(out, plain)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert x.grad is None
    (norms,) = seen.values()
    assert len(norms) == 12
    assert all(norm > 0 for norm in norms)


def test_a_given_hidden_state_is_taken_into_account():
    net = nn.LSTM(3, 5, batch_first=True)
    x = torch.randn(6, 9, 3)
    state = (torch.randn(1, 6, 5), torch.randn(1, 6, 5))
    with_state = look(net, x, state)[0][""]
    without = look(net, x)[0][""]
    assert with_state != without


def test_models_without_recurrence_and_steps_that_are_not_sampled_cost_nothing():
    assert not TemporalProbe(nn.Linear(2, 2)).start(0)
    probe = TemporalProbe(nn.GRU(2, 2), every_n_steps=10)
    assert not probe.start(3)
    assert probe.take() is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_of_packed_sequences_the_longest_are_measured(batch_first):
    net, time = nn.GRU(2, 2, batch_first=batch_first), 1 if batch_first else 0
    x = torch.randn(4, 5, 2) if batch_first else torch.randn(5, 4, 2)
    lengths, longest = torch.tensor([2, 5, 3, 5]), torch.tensor([1, 3])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    (norms,) = look(net, packed)[0].values()
    (expected,) = look(net, x.index_select(1 - time, longest))[0].values()
    assert norms == pytest.approx(expected, rel=1e-5)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(4, 4, nonlinearity="relu", bias=False)
        with torch.no_grad():
            self.cell.weight_hh.copy_(0.5 * torch.eye(4))
            self.cell.weight_ih.copy_(torch.eye(4))

    def forward(self, x):
        h = None
        for now in x:
            h = self.cell(now) if h is None else self.cell(now, h)
        return h


def test_cells_in_a_loop_are_seen_by_the_gradient_of_their_states():
    net = Loop()
    expected = torch.autograd.grad(net(torch.ones(10, 3, 4)).sum(), net.parameters())
    probe = TemporalProbe(net)
    assert probe.start(0)
    loss = net(torch.ones(10, 3, 4)).sum()
    net(torch.ones(2, 3, 4))  # another sequence, which is not taken for more of the same
    probe.stop()
    assert probe.take() is None, "nothing is known before the backward pass"
    probe = TemporalProbe(net)
    probe.start(0)
    loss = net(torch.ones(10, 3, 4)).sum()
    net(torch.ones(2, 3, 4))
    probe.stop()
    assert all(map(torch.equal, torch.autograd.grad(loss, net.parameters()), expected))
    (norms,) = probe.take().values()
    assert [a / b for a, b in itertools.pairwise(norms)] == pytest.approx([0.5] * 9, rel=1e-5)


def test_the_factor_ignores_what_underflowed_and_short_sequences(make_record):
    fading = tuple(0.0 if i < 4 else 0.1 ** (11 - i) for i in range(12))
    assert factors(make_record(temporal_norms={"rnn": fading}))["rnn"] == pytest.approx(0.1)
    assert factors(make_record(temporal_norms={"rnn": (0.1, 1.0)})) == {}
    broken = (float("inf"), *(1.0,) * 9)
    assert factors(make_record(temporal_norms={"rnn": broken}))["rnn"] == float("inf")


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"max_sequences": 0}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, got 0"):
        TemporalProbe(nn.GRU(2, 2), **options)
