"""Copies of the last good state, and what comes back from them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_gradguard.guard.buffers import Buffers
from lightning_gradguard.guard.snapshot import Snapshot

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, generator=generator)

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    return copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])


def assert_same(left: object, right: object) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    else:
        assert left == right


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_snapshot_brings_back_weights_buffers_and_optimizer_state_bit_for_bit(make_optimizer):
    net = make_net()
    optimizer = make_optimizer(net.parameters())
    train(net, optimizer, 3, seed=1)
    snapshot = Snapshot(net, [optimizer])
    snapshot.take(step=3)
    good = state_of(net, optimizer)
    train(net, optimizer, 2, seed=2)
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
    snapshot.restore_()
    assert_same(state_of(net, optimizer), good)
    train(net, optimizer, 2, seed=2)
    again = state_of(net, optimizer)
    snapshot.restore_()
    train(net, optimizer, 2, seed=2)
    assert_same(state_of(net, optimizer), again)


def test_state_that_the_optimizer_did_not_have_yet_is_forgotten():
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters())
    snapshot = Snapshot(net, [optimizer])
    snapshot.take(step=0)
    train(net, optimizer, 1, seed=0)
    snapshot.restore_()
    assert not optimizer.state


def test_the_learning_rate_does_not_go_back():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    snapshot = Snapshot(net, [optimizer])
    snapshot.take(step=0)
    optimizer.param_groups[0]["lr"] = 0.05
    snapshot.restore_()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_taking_again_uses_the_same_memory():
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, 1, seed=0)
    snapshot = Snapshot(net, [optimizer])
    snapshot.take(step=1)
    before = [tensor.data_ptr() for tensor in snapshot._params.values()]
    moments = [state["exp_avg"].data_ptr() for state in snapshot._states[0].values()]
    train(net, optimizer, 1, seed=1)
    snapshot.take(step=2)
    assert [tensor.data_ptr() for tensor in snapshot._params.values()] == before
    assert [state["exp_avg"].data_ptr() for state in snapshot._states[0].values()] == moments
    assert snapshot.step == 2


def test_memory_is_what_the_docs_say_three_times_the_parameters_under_adam():
    net = nn.Linear(100, 100)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    snapshot = Snapshot(net, [optimizer])
    snapshot.take(step=0)
    assert snapshot.nbytes == 3 * 4 * 10_100 + 2 * 4  # and a step counter for each parameter


def test_a_snapshot_that_was_never_taken_says_so():
    with pytest.raises(RuntimeError, match="no snapshot"):
        Snapshot(make_net(), []).restore_()


def test_parameters_stay_the_same_objects():
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters())
    params = list(net.parameters())
    memory = [p.data_ptr() for p in params]
    snapshot = Snapshot(net, [optimizer])
    snapshot.take(step=0)
    train(net, optimizer, 1, seed=0)
    snapshot.restore_()
    assert all(now is then for now, then in zip(net.parameters(), params, strict=True))
    assert [p.data_ptr() for p in net.parameters()] == memory


def test_a_nan_batch_poisons_batchnorm_and_buffers_undo_it():
    net = make_net()
    net(torch.randn(8, 3))
    buffers = Buffers(net)
    buffers.keep()
    good = [buffer.clone() for buffer in net.buffers()]
    net(torch.full((8, 3), float("nan")))
    assert buffers.not_finite() == ("1.running_mean", "1.running_var")
    assert not buffers.total().isfinite()
    buffers.restore_()
    assert buffers.not_finite() == ()
    assert all(torch.equal(now, then) for now, then in zip(net.buffers(), good, strict=True))


def test_statistics_are_kept_although_batchnorm_does_not_count_up_their_version():
    net = make_net()
    buffers = Buffers(net)
    net(torch.randn(8, 3))
    buffers.keep()
    kept = buffers.named()
    assert all(torch.equal(kept[name], buffer) for name, buffer in net.named_buffers())
    assert int(kept["1.num_batches_tracked"]) == 1


def test_a_mask_of_minus_infinity_is_no_damage():
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    net.register_buffer("scale", torch.ones(()))
    buffers = Buffers(net)
    assert buffers.total().isfinite()
    assert buffers.not_finite() == ()
    net.scale.fill_(float("nan"))
    assert buffers.not_finite() == ("scale",)


def test_a_buffer_bound_anew_by_the_module_is_followed():
    net = nn.Linear(2, 2)
    net.register_buffer("center", torch.zeros(2))
    buffers = Buffers(net)
    net.center = torch.ones(2)
    buffers.keep()
    net.center = torch.full((2,), float("nan"))
    assert buffers.not_finite() == ("center",)
    buffers.restore_()
    assert torch.equal(net.center, torch.ones(2))


def test_a_module_without_buffers_costs_nothing():
    buffers = Buffers(nn.Linear(2, 2))
    buffers.keep()
    buffers.restore_()
    assert buffers.total() is None
    assert buffers.not_finite() == ()


def test_buffers_of_every_kind_are_put_back():
    net = nn.BatchNorm2d(3)
    net.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))
    net.register_buffer("halves", torch.randn(2, 3).half())
    net.register_buffer("table", torch.randn(5, 2).t())
    buffers = Buffers(net)
    good = [buffer.clone() for buffer in net.buffers()]
    for buffer in net.buffers():
        buffer.zero_()
    assert list(buffers.named()) == [name for name, _ in net.named_buffers()]
    buffers.restore_()
    assert all(torch.equal(now, then) for now, then in zip(net.buffers(), good, strict=True))


def test_an_integer_buffer_bound_anew_is_followed():
    net = nn.Linear(2, 2)
    net.register_buffer("seen", torch.tensor(1))
    buffers = Buffers(net)
    net.seen = torch.tensor(2)
    buffers.keep()
    net.seen = torch.tensor(3)
    buffers.restore_()
    assert int(net.seen) == 2


def test_buffers_can_be_put_back_while_another_graph_still_waits_for_its_backward():
    # a GAN: the guard skips the discriminator's step after the generator's forward pass, before its backward
    net = make_net()
    buffers = Buffers(net)
    loss = net(torch.randn(8, 3)).square().mean()
    buffers.restore_()
    loss.backward()
    assert net[0].weight.grad is not None
    assert net[1].running_mean.eq(0).all()


def test_numbers_in_parameter_groups_are_put_back_but_not_what_schedulers_write():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    optimizer.param_groups[0].update(k=3, average=torch.ones(()))
    optimizer.state["steps"] = 3
    snapshot = Snapshot(nn.Linear(1, 1), [optimizer])
    snapshot.take(step=0)
    optimizer.param_groups[0].update(k=5, later=1, lr=0.05, momentum=0.8)
    optimizer.param_groups[0]["average"].fill_(float("nan"))
    optimizer.state["steps"] = 5
    snapshot.restore_()
    group = optimizer.param_groups[0]
    assert (group["k"], float(group["average"]), "later" in group) == (3, 1.0, False)
    assert (group["lr"], group["momentum"], optimizer.state["steps"]) == (0.05, 0.8, 3)
