"""Losses between two records."""

import math

import pytest
import torch

from lightning_gradguard.probes.losses import Losses


def test_mean_and_spread_are_those_of_all_losses_however_many_were_folded():
    values = torch.randn(300) * 3 + 100
    losses = Losses()
    for value in values:
        losses.new.append(value)
    mean, spread, bad = losses.take()
    assert mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert spread == pytest.approx(float(values.std(correction=0)), rel=1e-4)
    assert bad == 0
    assert losses.take() == (None, None, 0)


def test_losses_that_are_not_finite_are_counted_and_enter_nothing():
    losses = Losses()
    for value in (1.0, math.nan, 3.0, math.inf):
        losses.new.append(torch.tensor(value))
    assert losses.take() == (2.0, 1.0, 2)
    losses.new.append(torch.tensor(math.nan))
    mean, spread, bad = losses.take()
    assert math.isnan(mean)
    assert (spread, bad) == (None, 1)


def test_they_survive_a_checkpoint():
    one, other = Losses(), Losses()
    for value in (1.0, 2.0, 6.0):
        one.new.append(torch.tensor(value))
    other.load_state(one.state())
    assert other.take() == one.take()
