import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, NonFiniteGuard, NormClip, ValueClip
from lightning_gradguard.clip.answer import as_on_a_device
from lightning_gradguard.guard.squares import Squares
from tests.callbacks.test_checkpoints import all_finite, saver, written
from tests.models import Regression, batches

SQUARING = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
}


def step(make_optimizer, value, clip=None, dtype=torch.float32):
    """One step of a weight and a bias, one element of the weight's gradient at a value."""
    net = nn.Linear(4, 1).to(dtype)
    optimizer = make_optimizer(net.parameters(), lr=0.01)
    pipeline = GradientPipeline(net, optimizer, clip=clip, on_nonfinite="skip", log_every_n_steps=1)
    net.weight.grad, net.bias.grad = torch.zeros_like(net.weight), torch.ones_like(net.bias)
    net.weight.grad[0, 2] = value
    record = pipeline.before_step()
    optimizer.step()
    moments = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return record, all(bool(moment.isfinite().all()) for moment in moments)


@pytest.mark.parametrize("make", SQUARING.values(), ids=SQUARING)
@pytest.mark.parametrize("value", [1e25, -2e19])
def test_a_finite_gradient_that_cannot_be_squared_is_a_bad_step(make, value):
    record, finite = step(make, value)
    assert (record.verdict, record.cause, record.num_nonfinite, finite) == ("skipped", "square", 1, True)
    assert record.nonfinite_layers == ("weight",)


@pytest.mark.parametrize("make", SQUARING.values(), ids=SQUARING)
def test_a_large_one_that_can_be_squared_is_none(make):
    assert step(make, 1e19)[0].verdict == "ok"


def test_elements_that_can_be_squared_and_not_summed_are_no_bad_step():
    net = nn.Linear(8, 1, bias=False)
    optimizer = torch.optim.Adam(net.parameters())
    pipeline = GradientPipeline(net, optimizer, on_nonfinite="skip", log_every_n_steps=1)
    net.weight.grad = torch.full_like(net.weight, 1e19)
    assert pipeline.before_step().verdict == "ok"


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop])
def test_an_optimizer_that_squares_nothing_may_have_it(make):
    assert step(make, 1e25)[0].verdict == "ok"


@pytest.mark.parametrize("clip", [NormClip(1.0), ValueClip(1.0)])
def test_what_counts_is_what_the_optimizer_gets(clip):
    record, finite = step(torch.optim.Adam, 1e25, clip)
    assert (record.verdict, finite) == ("clipped", True)


def test_in_half_precision_the_limit_is_that_of_the_average():
    assert step(torch.optim.Adam, 8000.0, dtype=torch.float16)[0].verdict == "ok"
    assert step(torch.optim.Adam, 9000.0, dtype=torch.float16)[0].cause == "square"


def test_each_parameter_has_the_limit_of_its_own_optimizer():
    wide, narrow, plain = (nn.Parameter(torch.ones(1, dtype=d)) for d in (torch.float64, torch.float32, torch.float32))
    squares = Squares([torch.optim.Adam([wide]), torch.optim.AdamW([narrow]), torch.optim.SGD([plain], lr=0.1)])
    assert squares.smallest == pytest.approx(1.84e19, rel=0.01)
    assert Squares([torch.optim.Adam([wide])]).smallest == pytest.approx(1.3e154, rel=0.1)
    assert Squares([torch.optim.SGD([plain], lr=0.1)]).smallest == math.inf


class OneLargeElement(Regression):
    def on_after_backward(self):
        if self.trainer.global_step == 3 and not self.done:
            self.done = True
            next(self.parameters()).grad.view(-1)[0] = 1e25

    done = False


def test_no_checkpoint_holds_the_infinity_and_the_words_are_true(make_trainer, tmp_path):
    model = OneLargeElement(optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    trainer = make_trainer(callbacks=[NonFiniteGuard(), saver(tmp_path)], enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"step 3 was skipped: the gradient of net\.0 is finite and too large to be"):
        trainer.fit(model, batches())
    for checkpoint in written(tmp_path):
        assert all_finite(s["exp_avg_sq"] for s in checkpoint["optimizer_states"][0]["state"].values())


@pytest.mark.parametrize("arithmetic", [nullcontext, as_on_a_device], ids=["host", "device"])
@pytest.mark.parametrize("value", [2e4, 6e4, -2e4])
def test_pure_float16_has_its_own_limit_however_it_is_calculated(arithmetic, value):
    with arithmetic():
        make = partial(torch.optim.Adam, eps=1e-4)  # (1 - 0.999) g^2 overflows from 8.1e3 on
        bad, finite = step(make, value, dtype=torch.float16)
        good, _ = step(make, 4e3, dtype=torch.float16)
        clipped, safe = step(make, value, clip=NormClip(1.0), dtype=torch.float16)
    assert (bad.verdict, bad.cause, bad.nonfinite_layers, finite) == ("skipped", "square", ("weight",), True)
    assert good.verdict == "ok"
    assert (clipped.verdict, safe) == ("clipped", True)
