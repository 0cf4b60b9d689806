"""Dense networks on digits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp

KARPATHY = "https://twitter.com/karpathy/status/1013244313327681536"


COPY = "https://github.com/pytorch/pytorch/issues/7844"


class Functional(nn.Module):
    """Activations applied as functions, as most code has them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 48)])
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


PLAIN = Recipe(lambda: mlp(64, 64, 64, 10), digits(), cross_entropy, sgd(0.05), error_rate)


FUNCTIONS = Recipe(Functional, digits(), cross_entropy, adam(2e-3), error_rate)


def by_hand(net: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, as it stands in textbooks."""
    return -(F.one_hot(batch[1], 10) * net(batch[0]).log_softmax(1)).sum(1).mean()


LOGISTIC = Recipe(lambda: nn.Linear(64, 10), digits(), cross_entropy, sgd(0.1), error_rate)


KINDS = [
    Kind(
        "dense digits",
        PLAIN,
        (
            Fault("optimizer holds a copy", "optimizer holds other parameters", COPY, m.optimizer_of_a_copy),
            Fault("no zero_grad", "gradients are never cleared", KARPATHY, m.setting(manual=m.without_zero_grad)),
            Fault(
                "softmax before cross entropy",
                "output activation and loss do not fit",
                "https://github.com/NaJaeMin92/pytorch-DANN/issues/7",
                m.setting(model=lambda: mlp(64, 64, 64, 10, last=nn.Softmax(1))),
            ),
            Fault(
                "inputs of 1e-4",
                "input too small",
                "Humbatova et al. 2020, taxonomy: missing preprocessing",
                m.inputs(lambda x: x * 1e-4),
            ),
            Fault(
                "every unit begins the same",
                "units are identical",
                "https://stats.stackexchange.com/questions/45087",
                m.weights(lambda name, p: p.fill_(0.05)),
            ),
        ),
    ),
    Kind(
        "dense digits, functional",
        FUNCTIONS,
        (
            Fault(
                "learning rate of 3",
                "rate too high",
                "AUTOTRAINER, Zhang et al. 2021: exploding gradient",
                m.setting(optimizer=adam(3.0)),
            ),
            Fault(
                "dead ReLUs by bias",
                "units are dead",
                "AUTOTRAINER, Zhang et al. 2021: dying ReLU",
                m.weights(lambda name, p: p.fill_(-20.0) if name == "layers.1.bias" else None),
            ),
            Fault(
                "weight decay of 60",
                "weight decay rules",
                "https://github.com/BVLC/caffe/issues/1396",
                m.setting(optimizer=lambda net: torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=60.0)),
            ),
            Fault(
                "labels shuffled against images",
                "labels are wrong",
                "http://theorangeduck.com/page/neural-network-not-working",
                m.training_batches(lambda batch: (batch[0], batch[1].roll(1))),
                "hidden",
            ),
        ),
    ),
    Kind(
        "cross-entropy by hand",
        replace(FUNCTIONS, loss=by_hand),
        (
            Fault(
                "a thirtieth of the rate",
                "rate too low",
                "https://github.com/tegg89/SRCNN-Tensorflow/issues/24",
                m.rate(1 / 30),
            ),
            Fault(
                "SGD, a hundredth of the rate",
                "rate too low",
                "https://github.com/matteo-dunnhofer/imagenet/issues/10",
                m.setting(optimizer=sgd(5e-4)),
            ),
        ),
    ),
    Kind(
        "logistic regression",
        LOGISTIC,
        (
            Fault(
                "learning rate of 1e-6",
                "rate too low",
                "AUTOTRAINER, Zhang et al. 2021: slow convergence",
                m.setting(optimizer=sgd(1e-6)),
            ),
        ),
    ),
]
