"""Overlaps with targets that are written by hand: Dice, Jaccard, Tversky."""

import pytest
import torch
from torch.nn import functional as F

from lightning_gradguard.probes.functions import FunctionWatch

MASKS = (torch.arange(2 * 3 * 16).reshape(2, 3, 16) % 5 < 2).float()


def seen(loss, y=MASKS):
    watch = FunctionWatch(lambda *_: None)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    watch.start()
    value = loss(x, y)
    watch.stop()
    return value.item(), [stats for stats in watch.take() or () if stats.kind.startswith("overlap")]


def dice(x, y, act=torch.sigmoid):
    p = act(x)
    return (2 * (p * y).sum(2) + 1) / (p.sum(2) + y.sum(2) + 1)


def flat(x, y):
    p, y = torch.sigmoid(x).view(-1), y.view(-1)
    return 1 - (2.0 * (p * y).sum() + 1.0) / (p.sum() + y.sum() + 1.0)


def jaccard(x, y):
    p = torch.sigmoid(x)
    inside = (p * y).sum()
    return 1 - inside / (p.sum() + y.sum() - inside)


def tversky(x, y):
    p = torch.sigmoid(x)
    inside = (p * y).sum()
    return 1 - (inside + 1) / (inside + 0.3 * ((1 - y) * p).sum() + 0.7 * (y * (1 - p)).sum() + 1)


def of_sums(x, y):
    p = torch.sigmoid(x)
    return (1 - 2.0 * torch.sum(p * y, 2) / torch.sum(p + y, 2).clamp_min(1e-7)).mean()


def where_there_is_any(x, y):
    p = torch.sigmoid(x)
    inside, whole = 2 * (p * y).sum(2), p.sum(2) + y.sum(2)
    return -((inside + 1e-6) / (torch.where(whole == 0, inside, whole) + 1e-6)).mean()


LOSSES = {
    "one less": lambda x, y: 1 - dice(x, y).mean(),
    "negative": lambda x, y: -dice(x, y).mean(),
    "logarithm": lambda x, y: -dice(x, y).log().mean(),
    "flat": flat,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal": lambda x, y: tversky(x, y) ** 0.75,
    "of sums": of_sums,
    "where": where_there_is_any,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_overlap_is_known_by_its_sums_and_followed_to_the_loss(loss):
    value, (found,) = seen(loss)
    assert found.value == pytest.approx(value)
    assert (found.kind, found.raw, found.target_low, found.target_high) == ("overlap", False, 0, 1)
    turned, (found,) = seen(lambda x, y: 2 - loss(x, y))
    assert (found.kind, found.value) == ("overlap, minimized", pytest.approx(turned))
    assert seen(loss, 255 * MASKS)[1][0].target_high == 255


def test_a_factor_below_zero_turns_the_sign_wherever_it_stands():
    def loss(x, y):
        p = torch.sigmoid(x)
        return 1 - -1.0 * (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)

    assert seen(loss)[1][0].kind == "overlap, minimized"


def test_raw_outputs_are_told_where_the_denominator_may_vanish():
    assert seen(lambda x, y: 1 - dice(x, y, lambda x: 1.0 * x).mean())[1][0].raw
    (squares,) = seen(lambda x, y: 1 - (x * y).sum() / ((x * x).sum() + (y * y).sum()))[1]
    assert not squares.raw, "beside squares a product is never large"


def test_beside_another_term_the_sign_is_not_judged():
    (found,) = seen(lambda x, y: F.binary_cross_entropy_with_logits(x, y) + dice(x, y).mean())[1]
    assert found.kind == "overlap", "it may be a penalty on what is to stay apart"


def test_unusual_sums_and_powers_do_not_take_the_looking_away():
    oddities = (
        lambda x, y: (x.abs() ** y).sum(),
        lambda x, y: (2**x).sum() / (x.sum() + y.sum()),
        lambda x, y: (x * torch.complex(y, y)).sum().real,
        lambda x, y: x[:, :0].sum() / (y[:, :0] + x[:, :0]).sum(),
        lambda x, y: (x * y > 0).sum() / y.sum() + x.sum(),
    )
    for loss in oddities:
        watch = FunctionWatch(lambda *_: None)
        watch.start()
        loss(torch.randn(2, 3, 16).requires_grad_(), MASKS)
        watch.stop()
        watch.take()
        assert not watch.part.gone


def weighted_mean(x, y):
    weights = x.exp()
    return (weights * y).sum() / (weights.sum() + 1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: (x.square() * y).sum() / y.sum(),
        weighted_mean,
        lambda x, y: 1 - (x * y).sum() / ((x * x).sum().sqrt() * (y * y).sum().sqrt()),
        lambda x, y: ((x - y) ** 2).sum() / (y.sum() + 1),
    ],
    ids=["mean over a mask", "mean by learnt weights", "cosine", "relative error"],
)
def test_other_ratios_of_sums_are_no_overlap(loss):
    assert seen(loss)[1] == []
