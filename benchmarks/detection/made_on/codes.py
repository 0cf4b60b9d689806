"""Pictures that are squeezed, and an optimizer of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Loss, Recipe, adam
from ..tasks.digits import digits, error_rate
from ..tasks.models import mlp


class Squeezed(nn.Module):
    """A code that is made of whole numbers in the end, and of noise while it is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, 64, 12), mlp(12, 64, 64)
        self.log_scale = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = 3 * self.encode(x)
        code = code + torch.rand_like(code) - 0.5 if self.training else code.round()
        scale = self.log_scale.exp()
        inside = torch.sigmoid((code + 0.5) / scale) - torch.sigmoid((code - 0.5) / scale)
        return self.decode(code / 3), -torch.log2(inside.clamp(min=1e-7)).sum(1).mean()


def squeezed(weight: float = 0.002) -> Loss:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        made, bits = net(batch[0])
        return (made - batch[0]).square().mean() + weight * bits

    return loss


def distortion(net: nn.Module, batch: Batch) -> Tensor:
    return (net(batch[0])[0] - batch[0]).square().mean()


class Signs(torch.optim.Optimizer):
    """A step of the same size for every weight, with some momentum: an optimizer of one's own."""

    def __init__(self, params: Any, lr: float = 1e-3, power: int = 1) -> None:
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(kept.lerp_(p.grad, 0.1).sign(), alpha=group["lr"] ** group["power"])
        return loss


def entropy(net: nn.Module, batch: Batch) -> Tensor:
    return -net(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()


KINDS = [
    Kind(
        "codes in whole numbers",
        Recipe(Squeezed, digits(48), squeezed(), adam(2e-3), distortion, steps=250),
        (
            Fault(
                "bits are weighted by one",
                "posterior has collapsed",
                "https://github.com/AppliedDataSciencePartners/WorldModels/issues/12",
                m.setting(loss=squeezed(1.0)),
                "subtle",
            ),
        ),
    ),
    Kind(
        "steps of one size",
        Recipe(lambda: mlp(64, 48, 10), digits(32), entropy, lambda n: Signs(n.parameters(), 1e-3), error_rate, 250),
        (
            Fault(
                "the step is multiplied by the rate twice",
                "rate too low",
                "https://github.com/wuxiyu/transE/issues/15",
                m.setting(optimizer=lambda net: Signs(net.parameters(), 1e-3, power=2)),
            ),
        ),
    ),
]
