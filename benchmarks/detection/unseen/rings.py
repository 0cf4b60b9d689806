"""A generator of points and its judge, each with a step of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Optimizers, Recipe
from ..tasks.synthetic import distance


class Rings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = _leaky(6, 2), _leaky(2, 1)


def _leaky(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, n_out)
    )


def ellipse(generator: Generator, train: bool) -> Batch:
    """Points around an ellipse that is not in the middle."""
    num = 64 if train else 256
    angle = torch.rand(num, generator=generator) * 6.28
    place = torch.stack([1.5 * angle.cos() + 1, angle.sin()], 1)
    return (place + 0.1 * torch.randn(num, 2, generator=generator),)


def by_turns(detached: bool = False) -> Callable[[Any, Batch], Tensor]:
    """The judge's step, then the maker's, on the same sample."""

    def step(script: Any, batch: Batch) -> Tensor:
        net, (of_maker, of_judge) = script.net, script.optimizers()
        (real,) = batch
        made = net.maker(torch.randn(len(real), 6))
        judged = F.softplus(-net.judge(real)).mean() + F.softplus(net.judge(made.detach())).mean()
        of_judge.zero_grad()
        script.manual_backward(judged)
        of_judge.step()
        loss = F.softplus(-net.judge(made.detach() if detached else made)).mean()
        of_maker.zero_grad()
        script.manual_backward(loss)
        of_maker.step()
        return loss

    return step


def one_each(of_maker: float = 2e-3, of_judge: float = 2e-3) -> Optimizers:
    def build(net: Any) -> list[torch.optim.Optimizer]:
        rates = [(net.maker, of_maker), (net.judge, of_judge)]
        return [torch.optim.Adam(part.parameters(), rate, betas=(0.5, 0.999)) for part, rate in rates]

    return build


def unused(net: Any, batch: Batch) -> Tensor:
    """In place of a loss, which a step of one's own does not ask for."""
    return net.maker(batch[0]).mean()


def off_the_ring(net: Any, batch: Batch) -> Tensor:
    return distance(net.maker(torch.randn(len(batch[0]), 6)), batch[0])


KINDS = [
    Kind(
        "generator of rings",
        Recipe(Rings, ellipse, unused, one_each(), off_the_ring, 250, manual=by_turns()),
        (
            Fault(
                "the generator's loss is taken of a detached sample",
                "graph is cut",
                "https://github.com/nikhilsinghmus/image2reverb/issues/37",
                m.setting(manual=by_turns(detached=True)),
            ),
            Fault(
                "the generator's rate times three hundred",
                "rate too high",
                "DeepCrime HLR, on one optimizer (Humbatova et al. 2021)",
                m.setting(optimizer=one_each(0.6, 2e-3)),
            ),
        ),
    ),
]
