"""A part that only watches is taken away by its first exception, and is heard of once."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard.harmless.part import Hook, Part


def fail(*args):
    raise RuntimeError("no such thing")


def test_what_a_part_returns_comes_through_without_a_graph():
    weight = torch.ones(2, requires_grad=True)
    assert not Part("it", "gone").run(lambda: weight * 2).requires_grad


def test_the_first_exception_takes_a_part_away_and_is_told_once_with_its_reason():
    part = Part("the probe of moods", "moods are not shown")
    with pytest.warns(
        UserWarning, match=r"the probe of moods failed and is taken away .*: RuntimeError: no such"
    ) as told:
        assert part.run(fail) is None
        assert part.run(max, 1, 2) is None
    assert len(told) == 1
    assert "The training goes on as without it; moods are not shown." in str(told[0].message)


def test_a_hook_that_fails_names_its_module_and_all_hooks_of_the_part_are_gone():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    part = Part("it", "gone")
    for name, module in net.named_children():
        part.attach(module, fail, name)
    with pytest.warns(UserWarning, match=r"it failed at module '0' \(Linear\)") as told:
        net(torch.ones(1, 2))
    assert len(told) == 1
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_that_were_attached_before_one_could_not_be_are_gone_too():
    class Closed(nn.Module):
        def register_forward_hook(self, *args, **kwargs):
            raise TypeError("closed")

    net = nn.Linear(2, 2)
    part = Part("it", "gone")

    def attach_all():
        part.attach(net, fail, "")
        part.attach(Closed(), fail, "1")

    with pytest.warns(UserWarning, match="TypeError: closed"):
        part.run(attach_all)
    assert not net._forward_hooks


def test_a_hook_never_replaces_what_it_looks_at():
    net = nn.Linear(2, 2)
    Part("it", "gone").attach(net, lambda module, args, output: output * 0, "")
    assert net(torch.ones(1, 2)).abs().sum() > 0


def test_a_hook_works_where_no_graph_is_recorded():
    net, seen = nn.Linear(2, 2), []
    Part("it", "gone").attach(net, lambda module, args, output: seen.append((output * 2).requires_grad), "")
    net(torch.ones(1, 2))
    assert seen == [False]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_watched_module_is_not_watched(duplicate):
    net, seen = nn.Linear(2, 2), []
    Part("it", "gone").attach(net, lambda *args: seen.append(1), "")
    duplicate(net)(torch.ones(1, 2))
    assert not seen
    assert duplicate(Hook())() is None


def draw():
    legacy = np.random.mtrand._rand
    return torch.rand(1).item(), random.random(), legacy.rand()


@pytest.mark.parametrize("fails", [False, True])
def test_foreign_code_cannot_move_the_generators(fails):
    def gamble():
        draw()
        if fails:
            fail()

    torch.manual_seed(0)
    state = torch.get_rng_state(), random.getstate(), np.random.mtrand._rand.get_state()
    expected = draw()
    torch.set_rng_state(state[0]), random.setstate(state[1]), np.random.mtrand._rand.set_state(state[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Part("it", "gone", foreign=True).run(gamble)
    assert draw() == expected


def test_where_warnings_are_errors_the_log_tells_and_nothing_is_raised(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert Part("it", "gone").run(fail) is None
    assert "it failed and is taken away" in caplog.text


def test_long_reasons_are_cut():
    def babble():
        raise RuntimeError("bla " * 1000)

    with pytest.warns(UserWarning) as told:
        Part("it", "gone").run(babble)
    assert len(str(told[0].message)) < 600


def test_what_ends_a_program_is_no_failure():
    def leave():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Part("it", "gone").run(leave)
