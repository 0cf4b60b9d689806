"""Pairs and teachers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, counts_errors
from ..tasks.digits import digits, error_rate
from ..tasks.models import mlp
from .tuning import pretrained


def triplet(root: bool = False) -> Any:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        z = F.normalize(net(batch[0]), dim=1)
        apart = (z[:, None] - z).square().sum(2)
        apart = apart.sqrt() if root else apart
        same = batch[1][:, None] == batch[1]
        farthest, nearest = (apart * same).amax(1), (apart + 4 * same).amin(1)
        return F.relu(farthest - nearest + 0.3).mean()

    return loss


@counts_errors
def nearest_differs(net: nn.Module, batch: Batch) -> Tensor:
    z = F.normalize(net(batch[0]), dim=1)
    nearest = (torch.cdist(z, z) + 9 * torch.eye(len(z))).argmin(1)
    return (batch[1][nearest] != batch[1]).float().mean()


class Student(nn.Module):
    """A small network, and the teacher that it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.teacher = mlp(64, 24, 10), mlp(64, 48, 48, 10)
        self.teacher.load_state_dict(pretrained())
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def distil(temperature: float = 2.0, scaled: bool = True) -> Any:
    def loss(net: Any, batch: Batch) -> Tensor:
        taught = F.softmax(net.teacher(batch[0].flip(1)) / temperature, 1)
        learnt = F.log_softmax(net(batch[0]) / temperature, 1)
        return F.kl_div(learnt, taught, reduction="batchmean") * (temperature**2 if scaled else 1.0)

    return loss


def no_log_softmax(net: Any, batch: Batch) -> Tensor:
    taught = F.softmax(net.teacher(batch[0].flip(1)) / 2, 1)
    return F.kl_div(net(batch[0]) / 2, taught, reduction="batchmean")


def two_softmaxes(net: Any, batch: Batch) -> Tensor:
    return F.kl_div(net(batch[0]).softmax(1), net.teacher(batch[0].flip(1)).softmax(1), reduction="batchmean")


def raw_targets(net: Any, batch: Batch) -> Tensor:
    return F.kl_div(F.log_softmax(net(batch[0]), 1), net.teacher(batch[0].flip(1)), reduction="batchmean")


def logarithms_of_none(net: Any, batch: Batch) -> Tensor:
    taught = F.softmax(net.teacher(batch[0].flip(1)) / 2, 1)
    return F.kl_div(F.log_softmax(net(batch[0]) / 2, 1), taught, reduction="batchmean", log_target=True)


class Own(nn.Module):
    """Predicts what a slower copy of itself makes of another view."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.predictor = nn.Sequential(mlp(64, 48, 24), nn.BatchNorm1d(24)), mlp(24, 24, 24)
        self.slow = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x)


def follow(net: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        for slow, fast in zip(net.slow.parameters(), net.online.parameters(), strict=True):
            slow.lerp_(fast, 0.02)
    one, other = (batch[0] + 0.5 * torch.randn_like(batch[0]) for _ in "12")
    return 2 - 2 * F.cosine_similarity(net.predictor(net.online(one)), net.slow(other)).mean()


KINDS = [
    Kind(
        "triplets",
        Recipe(lambda: mlp(64, 48, 16), digits(48), triplet(), adam(2e-3), nearest_differs, steps=300),
        (
            Fault(
                "distance with a root",
                "a step is not finite",
                "https://github.com/adambielski/siamese-triplet/issues/18",
                m.setting(loss=triplet(root=True)),
            ),
        ),
    ),
    Kind(
        "distillation",
        Recipe(Student, digits(), distil(), lambda net: torch.optim.SGD(net.net.parameters(), 0.05, 0.9), error_rate),
        (
            Fault(
                "temperature of 100, gradients not scaled back",
                "loss is badly scaled",
                "https://arxiv.org/abs/1503.02531",
                m.setting(loss=distil(100.0, scaled=False)),
            ),
            Fault(
                "kl_div of raw outputs",
                "output activation and loss do not fit",
                "https://github.com/pytorch/pytorch/pull/19659",
                m.setting(loss=no_log_softmax),
            ),
            Fault(
                "kl_div of two softmaxes",
                "output activation and loss do not fit",
                "https://github.com/sebastian-hofstaetter/matchmaker/issues/18",
                m.setting(loss=two_softmaxes),
            ),
            Fault(
                "kl_div with the teacher's raw outputs as its targets",
                "output activation and loss do not fit",
                "https://github.com/lightly-ai/lightly/pull/1341",
                m.setting(loss=raw_targets),
            ),
            Fault(
                "kl_div with log_target=True, and probabilities as its targets",
                "output activation and loss do not fit",
                "https://github.com/pytorch/pytorch/pull/34586",
                m.setting(loss=logarithms_of_none),
            ),
        ),
    ),
    Kind("follows a slower copy of itself", Recipe(Own, digits(48), follow, adam(2e-3), nearest_differs, steps=300)),
]
