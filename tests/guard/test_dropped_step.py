"""A dropped step leaves nothing behind in optimizers that count in parameter groups, or fail without gradients."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline, NonFiniteGuard
from lightning_gradguard.guard.dropped_step import DroppedStep
from tests.guard.models import Norms, numbered


class Counting(torch.optim.SGD):
    """Counts its steps in each parameter group, for all and in an attribute, and steps less far each time."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.calls = 0

    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.calls += 1
        self.state["all"] = self.state.get("all", 0) + 1
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group.setdefault("sums", [torch.zeros(())])[0] += group["k"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(parameter.grad, alpha=group["lr"] / float(group["sums"][0]))
        return loss

    def numbers(self):
        group = self.param_groups[0]
        return self.calls, self.state.get("all"), group.get("k"), [float(value) for value in group.get("sums", [])]


class Demanding(torch.optim.SGD):
    """Fails without gradients."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]])
        super().step()
        return loss


class Slow:
    """A wrapper with a state of its own, which pulls the weights back every second step."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups, self.state, self.count = optimizer.param_groups, {}, 0

    def step(self):
        self.optimizer.step()
        self.count += 1
        for group in self.param_groups if self.count % 2 == 0 else []:
            for parameter in group["params"]:
                parameter.data.mul_(0.9)

    def zero_grad(self):
        self.optimizer.zero_grad()


class Pulls:
    """A wrapper without a state of its own, which hands attributes on and pulls the weights back by what it counts."""

    def __init__(self, optimizer):
        vars(self).update(optimizer=optimizer, count=[0])

    def __getattr__(self, name):
        return getattr(vars(self)["optimizer"], name)

    def __setattr__(self, name, value):
        setattr(self.optimizer, name, value)

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.count[0] += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1.0 - 0.1 / self.count[0])
        return loss


class Tuned(torch.optim.Optimizer):
    """A wrapper that is an optimizer of torch's, and keeps what it remembers in the state of the one in it."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups[0]["params"], {})
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.state["steps"] = self.state.get("steps", 0) + 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1.0 - 0.1 / self.state["steps"])
        return loss


MAKE = {
    "counting": lambda params: Counting(params, lr=0.1),
    "demanding": lambda params: Demanding(params, lr=0.1),
    "wrapped": lambda params: Slow(Counting(params, lr=0.1)),
    "pulls": lambda params: Pulls(torch.optim.Adam(params, lr=0.1)),
    "tuned": lambda params: Tuned(torch.optim.Adam(params, lr=0.1)),
    "all of them": lambda params: Pulls(Tuned(Pulls(Counting(params, lr=0.1)))),
    "torch": lambda params: torch.optim.AdamW(params, lr=0.1),
}


def trained(make, bad, *, closure=False, first=2):
    """The weights after six good batches, with a bad one among them or not."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = make(net.parameters())
    pipeline = GradientPipeline(net, optimizer, on_nonfinite="skip")
    for index, x in enumerate(torch.randn(6, 4, 3)):
        for x_now in [x * float("nan"), x] if bad and index == first else [x]:

            def backward(x=x_now):
                optimizer.zero_grad()
                net(x).square().mean().backward()
                pipeline.before_step()

            if closure:
                optimizer.step(backward)
            else:
                backward()
                optimizer.step()
    assert pipeline.counters.skipped == bad
    return torch.cat([net.weight.detach().flatten(), net.bias.detach()]), optimizer


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_a_run_with_a_dropped_step_ends_at_the_bits_of_one_that_never_met_it(make, first):
    assert torch.equal(trained(make, True, first=first)[0], trained(make, False)[0])


@pytest.mark.parametrize("first", [0, 2])
def test_so_it_does_where_the_step_is_dropped_from_inside_a_closure(first):
    weights, optimizer = trained(MAKE["counting"], True, closure=True, first=first)
    expected, never_met = trained(MAKE["counting"], False, closure=True)
    assert torch.equal(weights, expected)
    assert optimizer.numbers() == never_met.numbers()
    assert not optimizer._optimizer_step_post_hooks


def test_under_a_trainer_its_numbers_are_put_back_and_nothing_stays_on_the_optimizer():
    model = Norms({3: lambda x: x * float("nan")}, optimizer=MAKE["counting"])
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[NonFiniteGuard("skip")],
    )
    with pytest.warns(UserWarning, match="was skipped"):
        trainer.fit(model, numbered(8))
    optimizer = trainer.optimizers[0]
    assert optimizer.numbers() == (7, 7, 7, [28.0])
    assert not optimizer._optimizer_step_post_hooks
    assert "step" not in vars(optimizer)


def one_weight(lr=1.0):
    weight = nn.Parameter(torch.ones(1))
    return weight, torch.optim.SGD([weight], lr=lr)


def test_a_scheduler_neither_warns_nor_finds_its_optimizer_changed():
    weight, optimizer = one_weight()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    counted = vars(optimizer)["step"]
    DroppedStep([[optimizer]])
    optimizer.step()
    scheduler.step()
    assert vars(optimizer)["step"] == counted
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrap", [lambda one: one, Pulls, Tuned], ids=["plain", "wrapped", "wrapped by an optimizer"])
def test_a_scheduler_does_not_warn_where_the_very_first_step_is_dropped(wrap):
    weight, plain = one_weight()
    optimizer = wrap(plain)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(plain, 0.5)
    pipeline = GradientPipeline(nn.ParameterList([weight]), optimizer, on_nonfinite="skip")
    for gradient in (math.nan, 1.0):
        weight.grad = torch.full((1,), gradient)
        pipeline.before_step()
        optimizer.step()
        scheduler.step()
    assert (plain.param_groups[0]["lr"], bool(weight < 1.0)) == (0.25, True)


def test_a_scheduler_made_meanwhile_hands_on_to_the_real_step():
    weight, optimizer = one_weight()
    dropped = DroppedStep([[optimizer]])
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    dropped.end()
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.0


def test_a_step_that_has_gradients_again_is_another_one():
    weight, optimizer = one_weight()
    DroppedStep([[optimizer]])
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.0
    assert "step" not in vars(optimizer)


def test_a_step_that_never_came_is_not_waited_for():
    _, optimizer = one_weight()
    dropped = DroppedStep([[optimizer]])
    copied = copy.deepcopy(optimizer)
    assert "step" not in vars(copied)
    dropped.end()
    assert "step" not in vars(optimizer)
