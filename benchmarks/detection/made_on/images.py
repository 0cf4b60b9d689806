"""Images: gates over channels, attributes, pictures with holes, two losses at once."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, counts_errors, sgd
from ..tasks.digits import cross_entropy, digits, error_rate
from ..tasks.models import mlp


class Excite(nn.Module):
    """Convolutions whose channels are weighed by what is in all of the image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.gates = nn.ModuleList(mlp(width, 4, width, last=nn.Sigmoid()) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm, gate in zip(self.convs, self.norms, self.gates, strict=True):
            h = F.silu(norm(conv(x)))
            x = x + h * gate(h.mean((2, 3)))[:, :, None, None]
        return self.head(x.amax((2, 3)))


def attributes(generator: Generator, train: bool) -> Batch:
    """Whether the digit is odd, above four, prime, or has a hole."""
    x, y = digits(48)(generator, train)
    has = torch.tensor([[d % 2, d > 4, d in (2, 3, 5, 7), d in (0, 4, 6, 8, 9)] for d in range(10)]).float()
    return x, has[y]


def all_of_them(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


@counts_errors
def wrong_attributes(net: nn.Module, batch: Batch) -> Tensor:
    out = net(batch[0])
    middle = 0.5 if isinstance(net[-1], nn.Sigmoid) else 0.0  # type: ignore[index]
    return ((out > middle).float() != batch[1]).float().mean()


class Masked(nn.Module):
    """Sees a part of the rows, and draws the others."""

    def __init__(self) -> None:
        super().__init__()
        self.hole = nn.Parameter(0.02 * torch.randn(8))
        self.place = nn.Parameter(0.02 * torch.randn(8, 32))
        self.enter = nn.Linear(8, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = torch.where(hidden[..., None], self.hole, x)
        return self.decoder(self.encoder(self.enter(x) + self.place))


def with_holes(generator: Generator, train: bool) -> Batch:
    x, _ = digits(48, 8, 8)(generator, train)
    return x, torch.rand(x.shape[:2], generator=generator) < 0.4


def drawn(net: nn.Module, batch: Batch) -> Tensor:
    x, hidden = batch
    return F.mse_loss(net(x, hidden)[hidden], x[hidden])


class Both(nn.Module):
    """Names a digit and draws it again, from the same code."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.name, self.draw = mlp(64, 48, 24), nn.Linear(24, 10), mlp(24, 48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(self.trunk(x))
        return self.name(code), self.draw(code)


def named_and_drawn(net: nn.Module, batch: Batch, cut: bool = False) -> Tensor:
    name, drawing = net(batch[0])
    apart = (drawing - batch[0]).abs().mean()
    return F.cross_entropy(name, batch[1]) + (apart.detach() if cut else apart)


KINDS = [
    Kind(
        "squeeze and excitation",
        Recipe(Excite, digits(32, 1, 8, 8), cross_entropy, adamw(3e-3), error_rate, steps=250),
        (
            Fault(
                "a rate of 1 in the settings",
                "rate too high",
                "https://github.com/PENGLU-WashU/IMC_Denoise/issues/11",
                m.setting(optimizer=adamw(1.0)),
            ),
            Fault(
                "weight decay of a half",
                "weight decay rules",
                "https://github.com/BVLC/caffe/issues/1396",
                m.setting(optimizer=sgd(0.1, weight_decay=0.5)),
            ),
        ),
    ),
    Kind(
        "attributes of an image",
        Recipe(lambda: mlp(64, 48, 4), attributes, all_of_them, adam(3e-3), wrong_attributes, steps=300),
        (
            Fault(
                "sigmoid in the head",
                "output activation and loss do not fit",
                "https://github.com/argusswift/YOLOv4-pytorch/issues/89",
                m.setting(model=lambda: mlp(64, 48, 4, last=nn.Sigmoid())),
                "subtle",
            ),
            Fault(
                "scheduler of epochs in each batch",
                "rate decays too early",
                "https://github.com/leftthomas/SRGAN/issues/94",
                m.setting(schedule=lambda step: 0.1 ** (step // 5)),
            ),
        ),
    ),
    Kind(
        "images with holes",
        Recipe(Masked, with_holes, drawn, adamw(3e-3), steps=300),
        (
            Fault(
                "the output layer is frozen with the decoder",
                "frozen by mistake",
                "https://github.com/huggingface/distil-whisper/pull/126",
                m.frozen("decoder."),
            ),
        ),
    ),
    Kind(
        "names and drawings",
        Recipe(Both, digits(), named_and_drawn, adam(2e-3), steps=300),
        (
            Fault(
                "the second loss is detached",
                "graph is cut",
                "https://github.com/bboylyg/NAD/issues/8",
                m.setting(loss=lambda net, batch: named_and_drawn(net, batch, cut=True)),
            ),
        ),
    ),
]
