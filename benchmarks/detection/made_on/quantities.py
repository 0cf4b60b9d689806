"""Numbers: demand, time until an event, clicks, one generator against one judge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.models import mlp
from ..tasks.synthetic import distance, ring, table


def robust(net: nn.Module, batch: Batch) -> Tensor:
    return F.smooth_l1_loss(net(batch[0]), batch[1])


def until(generator: Generator, train: bool) -> Batch:
    """How long something lasted, and whether its end was seen."""
    x, y = table(64, 6)(generator, train)
    waited = -torch.log(torch.rand(y.shape, generator=generator).clamp(1e-4, 0.999))
    lasted = torch.exp(0.5 * y) * waited**0.7
    seen = torch.rand(y.shape, generator=generator) < 0.7
    return x, lasted, seen.float()


def weibull(net: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood of scale and shape, where ends that were not seen count as later."""
    x, lasted, seen = batch
    log_scale, log_shape = net(x).chunk(2, 1)
    shape = log_shape.exp()
    log_ratio = torch.log(lasted) - log_scale
    return -(seen * (log_shape + (shape - 1) * log_ratio - log_scale) - (shape * log_ratio).exp()).mean()


class Clicks(nn.Module):
    """Numbers and two tables of vectors; their products, and a net on top."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.who, self.what = mlp(4, 16, 8), nn.Embedding(30, 8), nn.Embedding(20, 8)
        self.top = mlp(11, 24, 16, 1)

    def forward(self, x: Tensor, pair: Tensor) -> Tensor:
        parts = torch.stack([F.relu(self.bottom(x)), self.who(pair[:, 0]), self.what(pair[:, 1])], 1)
        products = (parts @ parts.transpose(1, 2))[:, [0, 0, 1], [1, 2, 2]]
        return self.top(torch.cat([parts[:, 0], products], 1)).squeeze(1)


def clicks(generator: Generator, train: bool) -> Batch:
    size = 64 if train else 256
    x = torch.randn(size, 4, generator=generator)
    pair = torch.stack([torch.randint(n, (size,), generator=generator) for n in (30, 20)], 1)
    score = x[:, 0] * x[:, 1] + torch.sin(1.0 * pair[:, 0]) + 0.5 * torch.cos(2.0 * pair[:, 1]) + 0.5 * x[:, 2]
    return x, pair, (score > 0).float()


def clicked(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0], batch[1]), batch[2])


class LeastSquares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = mlp(4, 32, 32, 2), mlp(2, 32, 32, 1)


def of_each(net: Any) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(part.parameters(), 2e-3, betas=(0.5, 0.99)) for part in (net.maker, net.judge)]


def against(same: bool) -> Any:
    """Each in turn; by mistake the maker's optimizer steps both times."""

    def step(script: Any, batch: Batch) -> Tensor:
        net, (of_maker, of_judge) = script.net, script.optimizers()
        made = net.maker(torch.randn(len(batch), 4))
        of_judge.zero_grad()
        apart = (net.judge(batch) - 1).square().mean() + net.judge(made.detach()).square().mean()
        script.manual_backward(apart)
        (of_maker if same else of_judge).step()
        of_maker.zero_grad()
        made = net.maker(torch.randn(len(batch), 4))
        loss = (net.judge(made) - 1).square().mean()
        script.manual_backward(loss)
        of_maker.step()
        return loss

    return step


def far_off(net: Any, batch: Batch) -> Tensor:
    return distance(net.maker(torch.randn(len(batch), 4)), batch)


KINDS = [
    Kind(
        "robust regression",
        Recipe(lambda: mlp(8, 48, 48, 1), table(), robust, sgd(0.05), steps=400),
        (
            Fault(
                "targets of ten thousands",
                "targets too large",
                "https://github.com/sktime/pytorch-forecasting/issues/649",
                m.batches(lambda batch: (batch[0], 20_000 * batch[1] + 50_000)),
            ),
            Fault(
                "columns that were not normalized",
                "inputs differ in scale",
                "https://github.com/ageron/handson-ml3/pull/20",
                m.inputs(lambda x: x * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2000.0])),
            ),
        ),
    ),
    Kind(
        "time until an event",
        Recipe(lambda: mlp(6, 32, 2), until, weibull, adam(5e-3), steps=300),
        (
            Fault(
                "times of zero",
                "a step is not finite",
                "https://github.com/ragulpr/wtte-rnn/issues/33",
                m.training_batches(lambda batch: (batch[0], (batch[1] - 0.05).clamp(min=0), batch[2])),
            ),
        ),
    ),
    Kind(
        "clicks",
        Recipe(Clicks, clicks, clicked, adam(5e-3), steps=400),
        (
            Fault(
                "biases begin far below zero",
                "units are dead",
                "https://github.com/facebookresearch/dlrm/pull/358",
                m.weights(lambda name, p: p.fill_(-4.0) if name in ("top.0.bias", "top.2.bias") else None),
            ),
            Fault(
                "a rate that is a millionth of what it was meant to be",
                "rate too low",
                "https://github.com/sachaguer/jaxili/issues/16",
                m.rate(1e-6),
            ),
        ),
    ),
    Kind(
        "least squares against a judge",
        Recipe(LeastSquares, ring(), lambda n, b: n.judge(b).mean(), of_each, far_off, 400, manual=against(same=False)),
        (
            Fault(
                "the judge's gradients are stepped by the maker's optimizer",
                "step is never called",
                "https://github.com/Lornatang/ESRGAN-PyTorch/issues/39",
                m.setting(manual=against(same=True)),
            ),
        ),
    ),
]
