"""Images: depthwise convolutions, segmentation."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .. import mistakes as m
from ..kind import Fault, Kind
from ..recipe import Batch, Recipe, adam, adamw, sgd
from ..tasks.digits import cross_entropy, digits, error_rate


class Scaled(nn.Module):
    """Wide depthwise kernels, an inverted bottleneck, and a scale per channel that begins at 1e-6."""

    def __init__(self, scale: float = 1e-6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 2, stride=2)
        self.deep = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=16) for _ in range(3))
        self.norm = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(16, 48) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(48, 16) for _ in range(3))
        self.scale = nn.ParameterList(nn.Parameter(scale * torch.ones(16)) for _ in range(3))
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for deep, norm, up, down, scale in zip(self.deep, self.norm, self.up, self.down, self.scale, strict=True):
            h = down(F.gelu(up(norm(deep(x).permute(0, 2, 3, 1)))))
            x = x + (scale * h).permute(0, 3, 1, 2)
        return self.head(x.flatten(1))


def depthwise(norm: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.ReLU6()]
    for _ in range(3):
        parts += [nn.Conv2d(16, 16, 3, padding=1, groups=16), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU6()]
        parts += [nn.Conv2d(16, 16, 1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU6()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 10))


class Shaped(nn.Module):
    """Down, up again, and a shortcut between."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.low = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        high = F.leaky_relu(self.first(x))
        back = F.leaky_relu(self.up(F.leaky_relu(self.low(high))))
        return self.last(self.out(torch.cat([high, back], 1)))


def blobs(generator: Generator, train: bool) -> Batch:
    """Noisy images with one bright disc; the mask says where it is."""
    at = torch.rand(16, 2, 1, 1, generator=generator) * 1.4 - 0.7
    line = torch.linspace(-1, 1, 12)
    mask = ((line - at[:, :1]).square() + (line[:, None] - at[:, 1:]).square() < 0.15).float()
    return mask + 0.8 * torch.randn(mask.shape, generator=generator), mask


def pixels(net: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])


def overlap_missed(net: nn.Module, batch: Batch) -> Tensor:
    """One minus the overlap of the mask that is found with the true one."""
    found, mask = net(batch[0]) > 0, batch[1] > 0
    return 1 - (found & mask).sum() / (found | mask).sum().clamp(min=1)


def overlap_of_chances(net: nn.Module, batch: Batch) -> Tensor:
    return overlap_missed(lambda x: net(x) - 0.5, batch)  # type: ignore[arg-type]


SCALED = Recipe(Scaled, digits(32, 1, 8, 8), cross_entropy, adamw(4e-3, weight_decay=0.05), error_rate, steps=300)


DEPTHWISE = Recipe(depthwise, digits(32, 1, 8, 8), cross_entropy, sgd(0.1), error_rate, steps=300)


SHAPED = Recipe(Shaped, blobs, pixels, adam(5e-3), overlap_missed, steps=300)


def blank(x: Tensor) -> Tensor:
    """Pixels of 0 to 255, divided without a remainder."""
    return (128 + 60 * x).clamp(0, 254) // 255


KINDS = [
    Kind(
        "wide depthwise kernels with layer scale",
        SCALED,
        (
            Fault(
                "pixels divided as integers",
                "input is constant",
                "https://github.com/keras-team/keras/issues/255",
                m.inputs(blank),
            ),
        ),
    ),
    Kind(
        "depthwise separable convolutions",
        DEPTHWISE,
        (
            Fault(
                "weights from N(0, 0.001), no norm",
                "weights begin too small",
                "https://github.com/BVLC/caffe/issues/1396",
                m.both(
                    m.setting(model=lambda: depthwise(norm=False)),
                    m.weights(lambda name, p: nn.init.normal_(p, std=0.001) if p.dim() > 1 else None),
                ),
            ),
        ),
    ),
    Kind(
        "segmentation, U-shaped",
        SHAPED,
        (
            Fault(
                "masks of 0 and 255",
                "loss has no floor",
                "https://github.com/milesial/Pytorch-UNet/issues/78",
                m.training_batches(lambda b: (b[0], b[1] * 255)),
            ),
            Fault(
                "second sigmoid",
                "output activation and loss do not fit",
                "https://github.com/milesial/Pytorch-UNet/issues/176",
                m.setting(model=lambda: Shaped(nn.Sigmoid()), metric=overlap_of_chances),
                "subtle",
            ),
        ),
    ),
]
