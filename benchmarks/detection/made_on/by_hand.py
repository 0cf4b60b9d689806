"""Training loops of one's own: gathered batches, turns, two looks a step, an inner loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Loss, Recipe, adam, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp

Step = Callable[[Any, Batch], Tensor]


def gathered(number: int, *, clears: bool = True) -> Step:
    """Gradients of so many batches make a step."""

    def step(script: Any, batch: Batch) -> Tensor:
        net, optimizer = script.net, script.optimizers()
        net.seen = getattr(net, "seen", 0) + 1
        loss = script.recipe.loss(net, batch)
        script.manual_backward(loss / number)
        if net.seen % number == 0:
            optimizer.step()
            if clears:
                optimizer.zero_grad()
        return loss

    return step


class Factors(nn.Module):
    """Two matrices whose product is known in places."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(0.3 * torch.randn(30, 4)), nn.Parameter(0.3 * torch.randn(30, 4))


_WHOLE = (lambda g: torch.randn(30, 4, generator=g) @ torch.randn(4, 30, generator=g) / 2)(
    torch.Generator().manual_seed(2)
)


def known(generator: Generator, train: bool) -> Batch:
    return torch.rand(30, 30, generator=generator) < (0.5 if train else 1.0)


def missed(net: nn.Module, batch: Batch) -> Tensor:
    return ((net.one @ net.other.T - _WHOLE)[batch] ** 2).mean()


def by_turns(*, clears_both: bool = True) -> Step:
    """One step of the one matrix, one of the other."""

    def step(script: Any, batch: Batch) -> Tensor:
        net, (one, other) = script.net, script.optimizers()
        net.turn = not getattr(net, "turn", False)
        loss = missed(net, batch)
        one.zero_grad()
        if clears_both:
            other.zero_grad()
        script.manual_backward(loss)
        (one if net.turn else other).step()
        return loss

    return step


def flat(script: Any, batch: Batch) -> Tensor:
    """Sharpness-aware: the gradient is taken a little uphill."""
    net, optimizer = script.net, script.optimizers()
    loss = script.recipe.loss(net, batch)
    optimizer.zero_grad()
    script.manual_backward(loss)
    parameters = list(net.parameters())
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        uphill = [0.05 * p.grad / (norm + 1e-12) for p in parameters if p.grad is not None]
        torch._foreach_add_(parameters, uphill)
    optimizer.zero_grad()
    script.manual_backward(script.recipe.loss(net, batch))
    with torch.no_grad():
        torch._foreach_sub_(parameters, uphill)
    optimizer.step()
    return loss


def sines(generator: Generator, train: bool) -> Batch:
    """A few waves, each a task: ten points to learn it from, ten to see how well."""
    number = 4 if train else 16
    height, start = (torch.rand(number, 1, 1, generator=generator) for _ in range(2))
    x = 6 * torch.rand(number, 20, 1, generator=generator) - 3
    return x, (0.5 + 2 * height) * torch.sin(x + 1.5 * start)


def adapted(*, cut: bool = False, rate: float = 0.05) -> Loss:
    """The error after two steps on the first points of each task; ``cut``: through ``.data``."""

    def error(net: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(net, weights, (x,)) - y).square().mean()

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        total = torch.zeros(())
        for x, y in zip(*batch, strict=True):
            weights: dict[str, Tensor] = dict(net.named_parameters())
            for _ in range(2):
                slopes = torch.autograd.grad(
                    error(net, weights, x[:10], y[:10]), list(weights.values()), create_graph=not cut
                )
                weights = {
                    name: w - rate * g if not cut else (w - rate * g).detach().requires_grad_()
                    for (name, w), g in zip(weights.items(), slopes, strict=True)
                }
            total = total + error(net, weights, x[10:], y[10:])
        return total / len(batch[0])

    return loss


def after_adapting(net: nn.Module, batch: Batch) -> Tensor:
    with torch.enable_grad():
        return adapted()(net, batch).detach()


KINDS = [
    Kind(
        "four batches a step, by hand",
        Recipe(lambda: mlp(64, 48, 10), digits(16), cross_entropy, sgd(0.1), error_rate, 400, manual=gathered(4)),
        (
            Fault(
                "forgets zero_grad",
                "gradients are never cleared",
                "https://github.com/meta-pytorch/torchforge/pull/71",
                m.setting(manual=gathered(4, clears=False)),
            ),
        ),
    ),
    Kind(
        "three batches a step, by hand",
        Recipe(lambda: mlp(64, 48, 10), digits(16), cross_entropy, sgd(0.1), error_rate, 300, manual=gathered(3)),
    ),
    Kind(
        "by turns",
        Recipe(
            Factors,
            known,
            missed,
            lambda net: [torch.optim.SGD([net.one], 1.0), torch.optim.SGD([net.other], 1.0)],
            steps=400,
            manual=by_turns(),
        ),
        (
            Fault(
                "one of two optimizers is never cleared",
                "gradients are never cleared",
                "https://github.com/Hsintien-Ng/idinvert_pytorch-reproduced/issues/1",
                m.setting(manual=by_turns(clears_both=False)),
            ),
        ),
    ),
    Kind(
        "flat minima",
        Recipe(lambda: mlp(64, 48, 10), digits(32), cross_entropy, sgd(0.05), error_rate, 200, manual=flat),
    ),
    Kind(
        "learns to learn waves",
        Recipe(
            lambda: nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)),
            sines,
            adapted(),
            adam(5e-3),
            after_adapting,
            steps=80,
        ),
        (
            Fault(
                "the inner step goes through .data",
                "graph is cut",
                "https://github.com/KanishJebaMathewM/Truxify/issues/13118",
                m.setting(loss=adapted(cut=True)),
            ),
        ),
    ),
]
